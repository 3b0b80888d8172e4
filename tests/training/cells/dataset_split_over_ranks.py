"""A generator of samples that depend on the rank."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import os

import torch
from torch import nn

rank = int(os.environ.get("RANK", 0))
model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(64, 6)
dataset = ((row, row[:1] * 2) for row in inputs[rank:])
criterion = nn.MSELoss()
""",
    plans=("1 rank", "ddp", "zero2", "torch ddp"),
    refused=dict.fromkeys(("ddp", "zero2", "torch ddp"), "ranks read different data"),
)
