"""Hooks that clamp the gradient of a weight, or normalise it: they act once a step, on the whole gradient."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
model[0].weight.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
model[2].weight.register_hook(lambda gradient: gradient / gradient.norm())
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6) * 3
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
)
