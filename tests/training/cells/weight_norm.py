"""Weights with a parametrization, and an orthogonal one."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(
    nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
    nn.Tanh(),
    nn.utils.parametrizations.orthogonal(nn.Linear(6, 6)),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs.flip(1))
criterion = nn.MSELoss()
""",
)
