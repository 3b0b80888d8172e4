"""A checkpoint of any plan holds every parameter, whatever its shape, and any plan goes on from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.rank_pool import RankPool
from tests.training.cells.harness.case import FOR_ANY_MODEL, PLANS, Case
from tests.training.cells.harness.trained import RANKS, train_case, train_plainly
from workbench.engine.state.checkpoint_files import ShardReader
from workbench.engine.state.layout import Place
from workbench.rundir import checkpoints

#: parameters of no dimension, of one element, of fewer elements than ranks, and ones that nothing divides
SHAPES = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        shapes = [(), (1,), (1, 1), (3,), (13,), (5, 7), (1, 9), (9, 1), (2, 1, 1)]
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
    return train_plainly(pool, SHAPES)["losses"]


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


#: a vocabulary that two ranks do not divide
SPLIT = Case(
    cell="""
import torch
from transformers import LlamaConfig, LlamaForCausalLM

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=33, hidden_size=20, intermediate_size=34, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, use_cache=False, attention_bias=True,
))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 33
dataset = [{"input_ids": row, "labels": row} for row in ids]
criterion = lambda outputs, batch: outputs.loss
""",
    flags={"steps": 3},
)


def _state(path: Path) -> dict[str, torch.Tensor]:
    """Every whole tensor of a checkpoint that belongs to weights, optimizer and buffers."""
    reader = ShardReader(path)
    shapes = {name: entry["shape"] for name, entry in reader.tensors.items()}
    # a slice of a single number is stored as one element
    return {name: reader.part(name, Place.whole(shape)).reshape(shape) for name, shape in shapes.items()}


def _check_restored_bit_by_bit(pool: RankPool, case: Case, first: str, others: tuple[str, ...]) -> None:
    run, failure = train_case(pool, case, first, save_every=3)
    assert not failure
    assert run is not None
    saved = _state(checkpoints.directory(run.path, 3))
    assert {name.partition("/")[0] for name in saved} >= {"weights", "optimizer"}
    for then in others:
        plan = {"framework": "colossal", "tp": 1, "pp": 1, **PLANS[then]}
        resumed, failure = train_case(
            pool, case, then, function=f"{RANKS}:save_restored", resume=f"{run.path}@3", **plan | {"steps": 6}
        )
        assert not failure
        assert resumed is not None
        again = _state(checkpoints.directory(resumed.path, 3))
        assert again.keys() == saved.keys()
        differing = [name for name, tensor in saved.items() if not torch.equal(again[name], tensor)]
        assert not differing, (first, then)


@pytest.mark.parametrize("first", ["1 rank", "ddp", "zero1", "zero2", "hybrid dp"])
def test_every_shape_is_restored_bit_by_bit(first: str, pool: RankPool) -> None:
    _check_restored_bit_by_bit(pool, SHAPES, first, ("1 rank", "ddp", "zero1", "zero2", "hybrid dp"))


#: the same with parameters without elements, which ZeRO refuses
EMPTY = Case(cell=SHAPES.cell.replace("(2, 1, 1)]", "(2, 1, 1), (0,), (3, 0)]"), flags=SHAPES.flags)


@pytest.mark.parametrize("first", ["1 rank", "ddp", "hybrid dp"])
def test_parameters_without_elements_are_restored(first: str, pool: RankPool) -> None:
    _check_restored_bit_by_bit(pool, EMPTY, first, ("1 rank", "ddp", "hybrid dp"))


@pytest.mark.parametrize("first", ["tp", "pp", "zero1"])
def test_a_split_model_is_restored_bit_by_bit(first: str, pool: RankPool) -> None:
    _check_restored_bit_by_bit(pool, SPLIT, first, ("tp", "pp", "zero1", "1 rank"))
