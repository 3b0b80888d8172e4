"""One epoch of a generator, which can be read once: its end is the end of the training."""

from tests.training.cells.harness.case import Case

CASE = Case(
    flags={"epochs": 1, "steps": 0},
    plans=("1 rank", "ddp"),
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(18, 6)
dataset = ((row, row[:1] * 2) for row in inputs)
criterion = nn.MSELoss()
""",
    plain="""
for first in range(0, 18, 4):
    loss = loss_of(globals(), (inputs[first : first + 4], inputs[first : first + 4, :1] * 2))
    optimizer.zero_grad()
    loss.backward()
    losses.append(loss.item())
    optimizer.step()
""",
)
