"""A layer that the loss freezes after two steps."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
calls = []

def loss_fn(model, batch):
    calls.append(None)
    model[0].requires_grad_(len(calls) <= 2)
    return ((model(batch[0]) - batch[1]) ** 2).mean()
""",
    plans=("1 rank", "ddp", "zero1", "zero2", "torch ddp"),
    flags={"steps": 6},
)
