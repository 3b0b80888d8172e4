"""A loss under ``torch.no_grad``."""

from tests.training.cells.harness.case import FOR_ANY_MODEL, Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(16, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)

@torch.no_grad()
def loss_fn(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()
""",
    refused=dict.fromkeys(FOR_ANY_MODEL, "the loss has no gradient"),
)
