"""The optimizer holds the head only; the body gets gradients that nobody applies."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

body = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
model = nn.Sequential(body, nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model[1].parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
)
