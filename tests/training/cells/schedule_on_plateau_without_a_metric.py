"""A schedule that wants a metric, and no name of one."""

from tests.training.cells.harness.case import FOR_ANY_MODEL, Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
lr_scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    refused=dict.fromkeys(FOR_ANY_MODEL, "needs metrics"),
)
