"""Langevin dynamics: noise that an optimizer adds from a generator of its own, and a gradient hook from another, is the
same on all ranks, as they hold the same weights."""

from tests.training.cells.harness.case import LOSSES_ONLY, Case

CASE = Case(
    cell="""
import random

import torch
from torch import nn

generator = torch.Generator().manual_seed(5)
own = random.Random(6)

class Langevin(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))

model = nn.Linear(6, 1)
model.weight.register_hook(lambda gradient: gradient + own.gauss(0, 0.1))
optimizer = Langevin(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    plain=LOSSES_ONLY,
    refused={"zero1": "reads whole weights", "zero2": "reads whole weights"},
)
