"""Epochs of an iterable without a length: each ends when it is exhausted."""

from tests.training.cells.harness.case import Case

CASE = Case(
    flags={"epochs": 2, "steps": 0, "eval_every": 0},
    cell="""
import torch
from torch import nn

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return ((row, row[:1] * 2) for row in inputs)

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
lr_scheduler_every = "epoch"
inputs = torch.randn(9, 6)
dataset = Stream()
criterion = nn.MSELoss()
""",
    plain="""
for epoch in range(2):
    for batch in torch.utils.data.DataLoader(dataset, batch_size=spec.batch_size):
        loss = loss_of(globals(), batch)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    lr_scheduler.step()
""",
)
