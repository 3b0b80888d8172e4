"""How torch's hybrid plugin splits a model, as the planner sees it: nothing is split."""

from __future__ import annotations

from collections.abc import Collection

from workbench.core.config import TrainSpec
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch.pipeline.split import cuts_of, held_modules
from workbench.engine.frameworks.torch.tensor_parallel.splits import splits_of as tensor_splits_of
from workbench.errors import ConfigError
from workbench.planner.model import Splits


def splits_of(workload: Workload, tps: Collection[int], pps: Collection[int]) -> Splits:
    """As ``Plugin.splits``: for a model that the plugin's check let through with these numbers of tensor-parallel ranks
    and of stages, one for each rank of a pipeline."""
    stages: dict[int, tuple[tuple[str, ...], ...]] = {}
    for count in pps:
        plan = {"framework": "torch", "plugin": "hybrid", "ranks": count, "pp": count, "micro_batches": count}
        spec = TrainSpec.from_options({**plan, "batch_size": count})
        try:
            stages[count] = held_modules(workload.model, cuts_of(workload.model, spec, workload.pipeline_split))
        except ConfigError as error:
            return Splits(unknown=str(error))
    return Splits(tp=tensor_splits_of(workload, tps, pps).tp, stages=stages)
