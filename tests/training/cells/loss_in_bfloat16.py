"""A loss in bfloat16; its value has 8 bits, the gradients of float32 weights have all theirs."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(16, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = lambda outputs, target: ((outputs - target) ** 2).mean().bfloat16()
""",
    tolerance=8e-3,
)
