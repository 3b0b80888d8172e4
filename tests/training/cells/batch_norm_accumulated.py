"""Batch normalisation under gradient accumulation on one rank: that of a plain loop that accumulates, which is told."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(64, 4)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    flags={"accumulate": 2},
    plans=("1 rank",),
    plain="""
stream = batches(globals())
for _ in range(spec.steps):
    inputs, targets = next(stream)
    parts = [criterion(model(x), y) / 2 for x, y in zip(inputs.chunk(2), targets.chunk(2))]
    sum(parts).backward()
    losses.append(sum(part.item() for part in parts))
    norms.append(norm_of(optimizer))
    optimizer.step()
    optimizer.zero_grad()
""",
    says={"": "batch normalisation (1) uses the statistics of one gradient accumulation step at a time"},
)
