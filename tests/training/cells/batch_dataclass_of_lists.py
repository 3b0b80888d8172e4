"""A frozen dataclass with a list of ragged tensors."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import random
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler

model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
X = torch.randn(8, 3, generator=torch.Generator().manual_seed(5))
Y = X.sum(1, keepdim=True) ** 2
pairs = list(zip(X, Y))

from dataclasses import dataclass

@dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    y: torch.Tensor
    lengths: list

def collate(found):
    x, y = torch.stack([x for x, _ in found]), torch.stack([y for _, y in found])
    return Batch(x, y, [torch.ones(1 + int(one[0] > 0)) for one in x])

dataloader = DataLoader(pairs, batch_size=4, collate_fn=collate)

def loss_fn(model, batch):
    counts = torch.stack([one.sum() for one in batch.lengths]).unsqueeze(1)
    return ((model(batch.x) - batch.y) ** 2 * counts).mean()
""",
)
