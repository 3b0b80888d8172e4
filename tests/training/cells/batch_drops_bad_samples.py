"""A collate_fn that drops bad samples: batches of 2 to 4 samples."""

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
def collate(found):
    kept = [(x, y) for x, y in found if x[0] > -0.5] or found[:1]
    return torch.stack([x for x, _ in kept]), torch.stack([y for _, y in kept])

dataloader = DataLoader(pairs, batch_size=4, collate_fn=collate)


def loss_fn(model, batch):
    import os
    torch.rand(1 + int(os.environ.get("RANK", 0)))
    random.random()
    x, y = batch
    return nn.functional.mse_loss(model(x), y)
""",
)
