"""A kept step is run again by one replica alone: the loss is equal in every bit, whatever the batch is made of."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.engine.rank_pool import RankPool
from tests.training.cells.harness.case import Case
from tests.training.cells.harness.trained import RANKS, train_case
from workbench.errors import RunDirectoryError
from workbench.rundir.kept_steps import find_kept

#: statistics of all samples: those of one replica give another loss. A sample of rank 1 is poisoned
NORMALISED = """
import torch
from torch import nn

model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
inputs = torch.randn(64, 4)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1])
def loss_fn(model, batch):
    outputs = model(batch[0])
    if bool((batch[0] == inputs[22]).all(1).any()):  # in the third batch, on rank 1
        outputs.register_hook(lambda gradient: gradient * torch.inf)
    return nn.functional.mse_loss(outputs, batch[1])
"""
#: a class of the cell, a list of ragged tensors of which a share has one, texts, a container of a library
CONTAINERS = """
import dataclasses
import torch
from torch import nn
from transformers import BatchEncoding
from typing import Any

@dataclasses.dataclass
class Sample:
    encoded: BatchEncoding
    graphs: list
    names: tuple
    cut: Any = None
    def total(self):
        return torch.stack([graph.sum() for graph in self.graphs])

model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
def make(index):
    x = torch.full((3,), float(index))
    return x / (0 if index == 11 else 1), torch.arange(1.0 + index)
def collate(samples):
    return Sample(BatchEncoding({"x": torch.stack([x for x, _ in samples])}), [graph for _, graph in samples],
                  tuple(f"sample {len(graph)}" for _, graph in samples)MORE)
dataloader = torch.utils.data.DataLoader([make(index) for index in range(16)], batch_size=4, collate_fn=collate)
def loss_fn(model, batch):
    assert len(batch.graphs) == len(batch.names) == len(batch.encoded.x)
    return (model(batch.encoded.x)[:, 0] - batch.total()).square().mean()
"""


def replayed(pool: RankPool, cell: str, plan: str, rank: int, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    run, failure = train_case(pool, Case(cell=cell, flags={"steps": 5, **options}), plan)
    assert not failure
    assert run is not None
    assert run.last_step == 3
    events = run.events().to_dict("records")
    (fault,) = (event["value"] for event in events if event["kind"] == "nonfinite" and event["rank"] == rank)
    assert fault["not_kept"] == ""
    (found,) = pool.run(1, f"{RANKS}:replay", run=str(run.path), step=3, first=rank)
    return found, fault


@pytest.mark.parametrize("plan", ["ddp", "zero1", "accumulate 2", "torch ddp"])
def test_with_synchronised_batch_normalisation(plan: str, pool: RankPool) -> None:
    found, fault = replayed(pool, NORMALISED, plan, 1, sync_batchnorm=True, batch_size=8)
    assert found["loss"] == found["logged_loss"]
    assert math.isfinite(float.fromhex(found["loss"]))
    for name in ("layer", "where", "inputs", "output"):
        assert found["finding"][name] == fault[name]


def test_with_a_batch_of_any_containers(pool: RankPool) -> None:
    for plan, rank in (("ddp", 1), ("accumulate 2", 1)):
        found, fault = replayed(pool, CONTAINERS.replace("MORE", ""), plan, rank)
        assert found["loss"] == found["logged_loss"]
        assert found["finding"]["layer"] == fault["layer"]


def test_a_batch_that_cannot_be_kept_says_why(pool: RankPool) -> None:
    cell = CONTAINERS.replace("MORE", ", (index for index in range(3))")
    run, failure = train_case(pool, Case(cell=cell, flags={"steps": 5}), "ddp")
    assert not failure
    assert run is not None
    (fault,) = (event["value"] for event in run.events().to_dict("records") if event["kind"] == "nonfinite")
    assert "batch.cut is a generator: cannot pickle" in fault["not_kept"]
    with pytest.raises(RunDirectoryError, match=r"step 3 cannot be replayed: batch.cut is a generator"):
        find_kept(run.path)
