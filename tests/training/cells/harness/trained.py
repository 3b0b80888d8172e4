"""Trains a case under a plan, as ``%dist_train`` does."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tests.engine.rank_pool import RankPool
from tests.training.cells.harness.case import Case
from workbench.errors import ConfigError
from workbench.events.outcome import failure_of
from workbench.run.reader import RunReader
from workbench.run.resolve import resolve
from workbench.rundir import directory as run_directory

RANKS = "tests.training.cells.harness.ranks"


def compiles(case: Case) -> bool:
    """Whether the cell calls ``torch.compile``."""
    return "torch.compile(" in case.cell


def train_case(
    pool: RankPool,
    case: Case,
    plan: str,
    *,
    function: str = f"{RANKS}:train",
    arguments: Mapping[str, Any] = MappingProxyType({}),
    **more: Any,
) -> tuple[RunReader | None, str]:
    """The run, and what ended it early: a refusal, or an error of the ranks. ``function`` of the ranks is given the run
    and the ``arguments``; ``more`` are options of the spec."""
    try:
        request = resolve(case.options(plan) | more, cell=case.cell, default_ranks=2)
    except ConfigError as error:
        return None, str(error)
    path = run_directory.create(request.spec, request.cell)
    pool.run(request.spec.plan.ranks, function, compiles=compiles(case), run=str(path), **arguments)
    run = RunReader(path)
    run.store.refresh()
    failed = failure_of(run.store.table("events"))
    return run, "" if failed is None else str(failed)
