"""An IterableDataset that each of two workers reads a part of."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(16, 6)

class Stream(IterableDataset):
    def __iter__(self):
        worker = get_worker_info()
        return iter([(row, row[:1] * 2) for row in inputs[worker.id :: worker.num_workers]])

dataloader = DataLoader(Stream(), batch_size=4, num_workers=2)
criterion = nn.MSELoss()
""",
    flags={"steps": 6},
)
