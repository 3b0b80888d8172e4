"""A checkpoint of any plan holds every parameter, whatever its shape, and any plan goes on from it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.rank_pool import RankPool
from tests.training.cells.harness.case import FOR_ANY_MODEL, Case
from tests.training.cells.harness.trained import RANKS, train_case

#: parameters of no dimension, of one element, of fewer elements than ranks, and ones that nothing divides
SHAPES = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        shapes = [(), (1,), (1, 1), (3,), (5, 7), (1, 3), (2, 1, 1)]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)
        self.last = nn.Linear(4, 1)
        self.frozen = nn.Parameter(torch.randn(1), requires_grad=False)
    def forward(self, inputs):
        return self.last(inputs) * self.frozen + sum(w.sin().sum() for w in self.weights)

model = Net()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
inputs = torch.randn(64, 4)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2 + 3)
criterion = nn.MSELoss()
""",
    flags={"steps": 6},
)


@pytest.fixture(scope="module")
def right(pool: RankPool) -> list[float]:
    options = SHAPES.options("1 rank")
    return pool.run(1, f"{RANKS}:plain", cell=SHAPES.cell, loop="", options=options)[0]["losses"]


@pytest.mark.parametrize("first", FOR_ANY_MODEL)
def test_a_run_goes_on_under_every_plan(first: str, pool: RankPool, right: list[float]) -> None:
    run, failure = train_case(pool, SHAPES, first, save_every=3)
    assert not failure
    assert run is not None
    for then in ("1 rank", "ddp", "zero1", "zero2"):
        resumed, failure = train_case(pool, SHAPES, then, resume=f"{run.path}@3", framework="colossal")
        assert not failure
        assert resumed is not None
        np.testing.assert_allclose(resumed.metrics()["loss"], right[3:], rtol=2e-4)
