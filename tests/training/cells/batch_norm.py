"""Batch normalisation under data parallelism, as torchrun's DDP has it: each rank normalises by its own share."""

from tests.training.cells.harness.case import Case

MODEL = """
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2 + inputs[:, 1:2] ** 2)
criterion = nn.MSELoss()
"""
#: two halves of a batch, each normalised by itself
HALVES = """
for batch, _ in zip(batches(globals()), range(spec.steps)):
    halves = [(x, y) for x, y in zip(*(part.chunk(2) for part in batch))]
    loss = sum(loss_of(globals(), half) for half in halves) / 2
    optimizer.zero_grad()
    loss.backward()
    losses.append(loss.item())
    norms.append(norm_of(optimizer))
    optimizer.step()
"""
CASE = Case(
    cell=MODEL,
    flags={"batch_size": 8, "steps": 6},
    plans=("ddp", "zero1", "zero2", "torch ddp", "hybrid dp"),
    plain=HALVES,
    says={"": "batch normalisation (1) uses the statistics of each rank's own share of the batch"},
)
