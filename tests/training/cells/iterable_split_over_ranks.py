"""An IterableDataset that takes its rank's part by itself: ranks would each take a share of a part."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import os

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(16, 6)

class Stream(IterableDataset):
    def __iter__(self):
        return iter([(row, row[:1] * 2) for row in inputs[rank::ranks]])

dataloader = DataLoader(Stream(), batch_size=4)
criterion = nn.MSELoss()
""",
    plans=("1 rank", "ddp", "zero1", "torch ddp"),
    refused=dict.fromkeys(("ddp", "zero1", "torch ddp"), "ranks read different data"),
)
