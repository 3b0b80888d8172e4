"""Parameters without elements."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 1)
model.nothing = nn.Parameter(torch.empty(0))
model.rows_of_nothing = nn.Parameter(torch.empty(3, 0))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)

def loss_fn(model, batch):
    extra = model.nothing.sum() + model.rows_of_nothing.sum()
    return ((model(batch[0]) - batch[1]) ** 2).mean() + extra
""",
    refused=dict.fromkeys(("zero1", "zero2"), "has no elements"),
)
