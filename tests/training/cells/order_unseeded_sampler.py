"""An epoch is one batch, so its loss needs no order; a sampler that is seeded by the clock: rank 0 draws."""

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

class Unseeded(Sampler):
    def __init__(self):
        self.own = np.random.default_rng()

    def __iter__(self):
        return iter([self.own.permutation(8).tolist()])

    def __len__(self):
        return 1

dataloader = DataLoader(pairs, batch_sampler=Unseeded())

def loss_fn(model, batch):
    import os
    torch.rand(1 + int(os.environ.get("RANK", 0)))
    random.random()
    x, y = batch
    return nn.functional.mse_loss(model(x), y)
""",
)
