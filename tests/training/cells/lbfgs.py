"""An optimizer that needs a closure."""

from tests.training.cells.harness.case import FOR_ANY_MODEL, Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 1)
optimizer = torch.optim.LBFGS(model.parameters())
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    refused=dict.fromkeys(FOR_ANY_MODEL, "needs a closure"),
)
