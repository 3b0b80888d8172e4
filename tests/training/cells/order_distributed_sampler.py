"""A sampler that the cell makes for its rank, over several epochs: together, ranks read the order of one process."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import os

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(16, 6)
samples = TensorDataset(inputs, inputs[:, :1] * 2)
sampler = DistributedSampler(samples, num_replicas=ranks, rank=rank, shuffle=True, seed=3)
dataloader = DataLoader(samples, batch_size=4 // ranks, sampler=sampler)
criterion = nn.MSELoss()
""",
    flags={"steps": 10},
)
