"""What cells have in common that differ in how they average the losses of their samples."""

from __future__ import annotations

from tests.training.cells.harness.case import Case

#: some samples are chosen, of the first three none: a piece of the batch holds no chosen one
CELL = """
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
inputs = torch.randn(32, 6)
chosen = torch.arange(32) % 5 != 1
chosen[:3] = False
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :2], chosen)

def loss_fn(model, batch):
    x, y, chosen = batch
    losses = ((model(x) - y) ** 2).mean(1)
"""


def chosen_case(body: str, **more: object) -> Case:
    """A case whose ``loss_fn`` ends with ``body``: lines on ``model``, ``x``, ``y``, ``losses`` and ``chosen``, of one
    number or truth value for each sample."""
    return Case(cell=CELL + "".join(f"    {line}\n" for line in body.splitlines()), **more)  # type: ignore[arg-type]
