"""An epoch is one batch, so its loss needs no order; a generator of the loader that is seeded by the clock."""

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
own = torch.Generator()
own.seed()
dataloader = DataLoader(pairs, batch_size=8, shuffle=True, generator=own)

def loss_fn(model, batch):
    import os
    torch.rand(1 + int(os.environ.get("RANK", 0)))
    random.random()
    x, y = batch
    return nn.functional.mse_loss(model(x), y)
""",
)
