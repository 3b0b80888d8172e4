"""A schedule that moves rate and momentum in opposite directions, chained with one of a function for each group."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in (model[0], model[2])], lr=0.1, momentum=0.9)
lr_scheduler = schedules.ChainedScheduler([
    schedules.CyclicLR(optimizer, 0.01, 0.1, step_size_up=3, base_momentum=0.5),
    schedules.MultiplicativeLR(optimizer, [lambda step: 0.9, lambda step: 1.0]),
])
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    flags={"steps": 8},
)
