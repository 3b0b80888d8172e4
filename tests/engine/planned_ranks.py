"""What ranks hold of a split model beside what is predicted, before the first step."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Any

import torch

from tests.engine import split_models
from tests.engine.split_ranks import Case
from workbench.core.config import TrainSpec
from workbench.core.frameworks import framework
from workbench.engine.base.workload import Workload
from workbench.engine.entry import joined_of, load_strategy
from workbench.engine.planned.describe import parameters_of, tied_in
from workbench.engine.watch.torch.held_bytes import held_bytes
from workbench.planner.holdings import Job, memory
from workbench.planner.model import ModelDescription


def parameters(
    rank: int, ranks: int, directory: Path, *, cases: list[Case], options: dict[str, Any]
) -> list[tuple[int, int]]:
    """Bytes of parameters, predicted and held by this rank, case by case."""
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": split_models.BATCH, "plugin": "hybrid", **options})
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"):
        return [(_predicted(rank, spec, case), _bytes_held(rank, spec, case)) for case in cases]


def _workload(case: Case) -> Workload:
    family, name, settings, more = case
    network = split_models.model(family, name, settings, **more)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    return Workload(model=network, optimizer=optimizer, data=None, criterion=split_models.criterion)  # type: ignore[arg-type]


def _predicted(rank: int, spec: TrainSpec, case: Case) -> int:
    workload, plan = _workload(case), spec.plan
    own, tied = parameters_of(workload), tied_in(workload.model)
    plugin = framework(plan.framework).plugin(plan.plugin)
    splits = pkgutil.resolve_name(plugin.splits)(workload, {plan.tp} - {1}, {plan.pp} - {1})
    assert not splits.unknown, splits.unknown
    model = ModelDescription(title="", parameters=own, buffer_bytes=0, states={}, batch_size=8, tied=tied)
    assert plugin.shares is not None
    job = Job(plan=plan, shares=plugin.shares, splits=splits, batch_size=8, accumulate=1, precision="fp32")
    return memory(model, job, plan.mesh.coordinates(rank)).parameters


def _bytes_held(rank: int, spec: TrainSpec, case: Case) -> int:
    workload = _workload(case)
    strategy = load_strategy(spec)(spec, rank)
    strategy.check(spec, workload)
    strategy.prepare(workload)
    found = held_bytes(workload)["parameters"]
    strategy.close()
    return found
