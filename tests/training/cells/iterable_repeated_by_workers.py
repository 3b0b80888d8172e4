"""An IterableDataset that both workers read whole: each sample comes twice, as in one process."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(10, 6)

class Stream(IterableDataset):
    def __iter__(self):
        return iter([(row, row[:1] * 2) for row in inputs])

dataloader = DataLoader(Stream(), batch_size=4, num_workers=2)
criterion = nn.MSELoss()
""",
    flags={"steps": 8},
)
