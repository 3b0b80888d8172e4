"""A model that torch compiles."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = torch.compile(nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 1)), backend="aot_eager")
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
)
