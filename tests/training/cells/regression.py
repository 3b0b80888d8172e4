"""The cell of the README: two linear layers and a mean squared error."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
inputs = torch.randn(64, 10)
dataset = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
criterion = nn.MSELoss()
""",
)
