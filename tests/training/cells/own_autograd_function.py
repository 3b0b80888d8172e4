"""An autograd function of the cell's own, and a gradient hook on a parameter."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(-1, 1)
    @staticmethod
    def backward(ctx, gradient):
        return gradient * 0.5

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 1)
    def forward(self, inputs):
        return self.last(Clamp.apply(self.first(inputs)))

model = Net()
model.last.weight.register_hook(lambda gradient: gradient * 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
)
