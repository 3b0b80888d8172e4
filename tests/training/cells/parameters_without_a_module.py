"""Weights of two losses that are bare parameters of the cell, trained with the model."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 2)
log_sigmas = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(()))]
optimizer = torch.optim.SGD([*model.parameters(), *log_sigmas], lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :2] * 2)

def loss_fn(model, batch):
    found = ((model(batch[0]) - batch[1]) ** 2).mean(0)
    return sum(found[i] * (-log_sigmas[i]).exp() + log_sigmas[i] for i in range(2))
""",
)
