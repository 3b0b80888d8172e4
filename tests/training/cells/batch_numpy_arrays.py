"""NumPy arrays in a batch are cut as tensors are."""

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
    return {"x": torch.stack([x for x, _ in found]), "y": np.stack([y.numpy() for _, y in found])}

dataloader = DataLoader(pairs, batch_size=4, collate_fn=collate)

def loss_fn(model, batch):
    return nn.functional.mse_loss(model(batch["x"]), torch.from_numpy(batch["y"]))
""",
)
