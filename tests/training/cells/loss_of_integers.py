"""A loss that counts errors."""

from tests.training.cells.harness.case import FOR_ANY_MODEL, Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
dataset = torch.utils.data.TensorDataset(torch.randn(16, 6), torch.arange(16) % 3)
criterion = lambda outputs, target: (outputs.argmax(1) != target).sum()
""",
    refused=dict.fromkeys(FOR_ANY_MODEL, "the loss is an integer"),
)
