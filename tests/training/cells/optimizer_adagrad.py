"""Adagrad, which makes its state when it is made, before a plan touches the weights."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05, initial_accumulator_value=0.3)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
)
