"""The size of the global batch is the sum of all shares, however many ranks hold a replica, and whatever is in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workbench.core.mesh import Mesh
from workbench.core.records import EventKind
from workbench.engine.base.batch import StandIn
from workbench.engine.watch.torch.batch_sizes import BatchSizeLogger


class Ranks:
    """An exchange of ranks that pass these numbers."""

    def __init__(self, numbers: list[int]) -> None:
        self.rank, self.ranks = 0, len(numbers)
        self.numbers = numbers

    def gathered(self, value: Any) -> list[Any]:
        assert value == self.numbers[0]
        return self.numbers


def logged(batch: Any, numbers: list[int], mesh: Mesh, *, rank: int = 0, tokens: int | None = None) -> list[Any]:
    events: list[Any] = []
    log = SimpleNamespace(event=lambda *event, step: events.append((*event, step)))
    strategy = SimpleNamespace(mesh=mesh, rank=rank)
    logger = BatchSizeLogger(strategy, log, Ranks(numbers), tokens_per_sample=tokens)  # type: ignore[arg-type]
    logger.batch(3, batch)
    logger.batch(4, torch.ones(7))  # of later batches nothing is told, and nothing exchanged
    return events


@pytest.mark.parametrize(
    ("numbers", "mesh", "expected"),
    [
        ([3, 2], Mesh(dp=2, tp=1, pp=1), 5),
        ([3, 0, 2], Mesh(dp=3, tp=1, pp=1), 5),
        ([3, 3], Mesh(dp=1, tp=2, pp=1), 3),
        ([3, 3, 2, 2, 3, 3, 2, 2], Mesh(dp=2, tp=2, pp=2), 5),
    ],
)
def test_shares_are_added_up(numbers: list[int], mesh: Mesh, expected: int) -> None:
    (event,) = logged(torch.ones(3, 2), numbers, mesh)
    assert event == (EventKind.DATA, "batch", {"samples": expected, "unit": "samples"}, 3)


def test_tokens_stand_ins_and_other_ranks() -> None:
    mesh = Mesh(dp=2, tp=1, pp=1)
    (event,) = logged({"input_ids": torch.ones(3, 5)}, [3, 2], mesh)
    assert event[2] == {"samples": 5, "unit": "tokens"}
    (event,) = logged(StandIn(torch.ones(1, 2)), [0, 4], mesh)
    assert event[2] == {"samples": 4, "unit": "samples"}
    assert logged(torch.ones(3, 2), [3, 2], mesh, rank=1) == []
