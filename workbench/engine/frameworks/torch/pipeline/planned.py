"""How a pipeline of torch splits a model, as the planner sees it: nothing is split."""

from __future__ import annotations

from collections.abc import Collection

import torch

from workbench.core.config import ParallelPlan, TrainSpec
from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch.pipeline.split import cuts_of, modules_of_stages
from workbench.engine.frameworks.torch.tensor_parallel import splits
from workbench.planner.model import Splits


def splits_of(workload: Workload, tps: Collection[int], pps: Collection[int]) -> Splits:
    """As ``Plugin.splits``: for a model that the plugin's check let through with these sizes, under the schedule
    1F1B."""
    stages = {count: _held(workload.model, count, workload.pipeline_split) for count in pps}
    if any(names is None for names in stages.values()):
        return Splits(unknown=f"{type(workload.model).__name__} has parameters that belong to no module of a stage")
    found = {count: names for count, names in stages.items() if names is not None}
    return Splits(tp=splits.splits_of(workload, tps, ()).tp, stages=found)


def _held(model: torch.nn.Module, count: int, named: Collection[str]) -> tuple[tuple[str, ...], ...] | None:
    """The modules of each of ``count`` stages; None where the model has parameters beside them."""
    plan = ParallelPlan(framework="torch", plugin="hybrid", ranks=count, pp=count, micro_batches=count)
    found = modules_of_stages(model, cuts_of(model, TrainSpec(plan=plan, batch_size=count), list(named)))
    return None if found is None else tuple(tuple(map(users_name, names)) for names in found)
