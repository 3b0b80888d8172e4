"""Trains a case under a plan, as ``%dist_train`` does."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tests.engine.rank_pool import COMPILER, RankPool
from tests.training.cells.harness.case import Case
from workbench.core.config import TrainSpec
from workbench.core.frameworks import framework
from workbench.errors import ConfigError
from workbench.events.outcome import failure_of
from workbench.run.reader import RunReader
from workbench.run.resolve import resolve
from workbench.rundir import directory as run_directory

RANKS = "tests.training.cells.harness.ranks"


def compiler_of(case: Case) -> list[str]:
    """The compiler, if the cell calls ``torch.compile``."""
    return [COMPILER] if "torch.compile(" in case.cell else []


def train_case(
    pool: RankPool,
    case: Case,
    plan: str,
    *,
    function: str = f"{RANKS}:train",
    arguments: Mapping[str, Any] = MappingProxyType({}),
    kept_for: str = "",
    **more: Any,
) -> tuple[RunReader | None, str]:
    """The run, and what ended it early: a refusal, or an error of the ranks. ``function`` of the ranks is given the run
    and the ``arguments``; ``kept_for``: of ``RankPool.run``; ``more`` are options of the spec."""
    try:
        request = resolve(case.options(plan) | more, cell=case.cell, default_ranks=2)
    except ConfigError as error:
        return None, str(error)
    path = run_directory.create(request.spec, request.cell)
    imports = [*compiler_of(case), _strategy_module(request.spec)]
    pool.run(request.spec.plan.ranks, function, kept_for=kept_for, imports=imports, run=str(path), **arguments)
    run = RunReader(path)
    run.store.refresh()
    failed = failure_of(run.store.table("events"))
    return run, "" if failed is None else str(failed)


def train_plainly(pool: RankPool, case: Case, *, loop: str = "", kept_for: str = "") -> dict[str, Any]:
    """Losses, gradient norms and validations of one process, by ``loop`` or the case's own."""
    arguments = {"cell": case.cell, "loop": loop or case.plain, "options": case.options("1 rank")}
    return pool.run(1, f"{RANKS}:plain", kept_for=kept_for, imports=compiler_of(case), **arguments)[0]


def _strategy_module(spec: TrainSpec) -> str:
    return framework(spec.plan.framework).plugin(spec.plan.plugin).strategy.partition(":")[0]
