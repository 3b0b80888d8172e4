"""A mean of the cell's own over chosen samples: a share without any is no NaN."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
inputs = torch.randn(32, 6)
chosen = torch.arange(32) % 5 != 1
chosen[:3] = False
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :2], chosen)

def loss_fn(model, batch):
    x, y, chosen = batch
    losses = ((model(x) - y) ** 2).mean(1)
    return losses[chosen].mean()
""",
    plans=("ddp", "accumulate 2", "torch ddp"),
)
