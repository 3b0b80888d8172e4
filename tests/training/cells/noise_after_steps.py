"""``on_step`` changes weights in place, by a generator of its own: alike on all ranks. Plans that keep a copy of the
weights would undo it, so they refuse it."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import numpy as np
import torch
from torch import nn

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
generator = np.random.default_rng(5)

@torch.no_grad()
def on_step(step, values):
    model.weight.mul_(0.99).add_(torch.from_numpy(generator.normal(0, 0.1, (1, 6))).float())
""",
    plain="""
for batch, step in zip(batches(globals()), range(spec.steps)):
    loss = loss_of(globals(), batch)
    optimizer.zero_grad()
    loss.backward()
    losses.append(loss.item())
    optimizer.step()
    on_step(step + 1, {})
""",
    refused={plan: f"on_step changes weights in place ((model)), but --plugin {plan}" for plan in ("zero1", "zero2")},
    refused_after=1,
)
