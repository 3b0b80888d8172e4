"""Weights that the loss clamps in place before each step."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)

def loss_fn(model, batch):
    with torch.no_grad():
        model.weight.clamp_(-0.2, 0.2)
    return ((model(batch[0]) - batch[1]) ** 2).mean()
""",
    refused={"zero1": "changes weights in place", "zero2": "changes weights in place"},
)
