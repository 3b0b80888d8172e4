"""Parameters in float64 and float32, and a loss in bfloat16."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 4).double()
        self.last = nn.Linear(4, 1)
    def forward(self, x):
        return self.last(self.first(x.double()).float())

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)

def loss_fn(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean().bfloat16()
""",
    tolerance=0.01,
    refused={"zero1": "several types", "zero2": "several types"},
)
