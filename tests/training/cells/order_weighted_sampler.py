"""An epoch is one batch, so its loss needs no order; ranks that drew unevenly must still hold each sample once."""

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
sampler = torch.utils.data.WeightedRandomSampler([1.0] * 8, 8, replacement=False)
dataloader = DataLoader(pairs, batch_size=8, sampler=sampler)

def loss_fn(model, batch):
    import os
    torch.rand(1 + int(os.environ.get("RANK", 0)))
    random.random()
    x, y = batch
    return nn.functional.mse_loss(model(x), y)
""",
)
