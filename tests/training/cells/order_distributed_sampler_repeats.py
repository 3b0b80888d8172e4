"""A DistributedSampler over a number of samples that ranks do not divide: it repeats some, and a run says so."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import os
from itertools import count

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(7, 6)
samples = TensorDataset(inputs, inputs[:, :1] * 2)
dataloader = DataLoader(samples, batch_size=2, sampler=DistributedSampler(samples, ranks, rank))
criterion = nn.MSELoss()
""",
    plans=("ddp", "zero2", "torch ddp"),
    plain="""
def repeated():
    for epoch in count():
        order = torch.randperm(7, generator=torch.Generator().manual_seed(epoch)).tolist()
        yield from (samples[order[:4]], samples[[*order[4:], order[0]]])

losses, norms = train({**globals(), "dataloader": repeated()})
""",
    says={"": "repeats 1 of 7 samples"},
)
