"""A parameter that the very last step does not use on one rank."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 1)
        self.extra = nn.Linear(6, 1)
    def forward(self, inputs, use):
        return self.body(inputs) + (self.extra(inputs) * use if use.any() else 0)

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(16, 6)
use = torch.ones(16, 1)
use[12:14] = 0
dataset = torch.utils.data.TensorDataset(inputs, use, inputs[:, :1] * 2)

def loss_fn(model, batch):
    return ((model(*batch[:2]) - batch[2]) ** 2).mean()
""",
)
