"""A body that the loss begins to train at the third step."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
model[0].requires_grad_(False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
calls = []

def loss_fn(model, batch):
    calls.append(None)
    model[0].requires_grad_(len(calls) > 2)
    return ((model(batch[0]) - batch[1]) ** 2).mean()
""",
    plans=("1 rank", "ddp", "zero1", "zero2", "torch ddp"),
    refused=dict.fromkeys(("1 rank", "ddp", "zero1", "zero2", "torch ddp"), "began to require a gradient"),
    refused_after=2,
)
