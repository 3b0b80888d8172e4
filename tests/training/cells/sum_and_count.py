"""``loss_fn`` returns a sum and what it is over."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
weights = torch.tensor([1.0, 0.0, 5.0, 0.5] * 8)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2, weights)

def loss_fn(model, batch):
    inputs, targets, weights = batch
    return ((model(inputs) - targets).squeeze(1) ** 2 * weights).sum(), weights.sum()
""",
)
