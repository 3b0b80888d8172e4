"""A loss whose weight grows with each call."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)

class Growing:
    calls = 0
    def __call__(self, outputs, target):
        self.calls += 1
        return ((outputs - target) ** 2).mean() * min(1.0, 0.25 * self.calls)

criterion = Growing()
""",
    plans=("1 rank", "ddp", "zero1", "zero2", "torch ddp"),
)
