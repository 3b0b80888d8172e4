"""What a rank keeps of a workload: its stages, cut over its tensor-parallel ranks, and their optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from workbench.core.config import TrainSpec
from workbench.core.mesh import Coordinates
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch.fsdp.sharding import one_by_one, replace_parameters
from workbench.engine.frameworks.torch.pipeline.split import Stages, cuts_of, split
from workbench.engine.frameworks.torch.tensor_parallel.parallelize import Cut, parallelize
from workbench.engine.frameworks.torch.tensor_parallel.plan import TensorPlan, plan_of
from workbench.engine.state.layout import Originals


@dataclass(frozen=True, kw_only=True)
class RankModel:
    """The part of a model on this rank. ``rank_of_stage``: which rank of the pipeline holds each stage. ``cuts``: what
    tensor parallelism leaves this rank of the parameters that it cuts, by name."""

    stages: Stages
    rank_of_stage: Mapping[int, int]
    cuts: Mapping[str, Cut]


def tensor_plan(spec: TrainSpec, workload: Workload) -> TensorPlan | None:
    """How the layers are cut; None without ``tp``. ``ConfigError`` for a model that cannot be."""
    return plan_of(workload.model, spec.plan.tp, workload.names.get("tp_plan")) if spec.plan.tp > 1 else None


def assemble(
    spec: TrainSpec, workload: Workload, here: Coordinates, device: torch.device, originals: Originals
) -> RankModel:
    """Leave the modules of other ranks out of ``workload.model``, in place, and their parameters out of its optimizer.

    Collective over the tensor-parallel ranks. ``originals``: names of the whole model.
    """
    model, plan = workload.model, tensor_plan(spec, workload)
    cuts = cuts_of(model, spec, workload.pipeline_split)
    rank_of_stage = {stage: stage % spec.plan.pp for stage in range(len(cuts) + 1)}
    stages = split(model, cuts, rank_of_stage, here.pp, device)
    model.to(device)
    _keep_held(workload.optimizer, model)
    if workload.after_split is not None:
        workload.after_split(model)
    found = {} if plan is None else _cut_layers(spec, workload, stages, plan, device)
    cut = {originals.name(name): own for name, own in found.items()}
    return RankModel(stages=stages, rank_of_stage=rank_of_stage, cuts=cut)


def _keep_held(optimizer: Any, model: torch.nn.Module) -> None:
    held = {id(parameter) for parameter in model.parameters()}
    for group in optimizer.param_groups:
        for parameter in [p for p in group["params"] if id(p) not in held]:
            optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if id(p) in held]


def _cut_layers(
    spec: TrainSpec, workload: Workload, stages: Stages, plan: TensorPlan, device: torch.device
) -> dict[str, Cut]:
    """Cut the layers of this rank's stages; what is left of parameters, by name."""
    model, sizes = workload.model, spec.plan.mesh
    mesh = init_device_mesh(device.type, (sizes.dp, sizes.pp, sizes.tp), mesh_dim_names=("dp", "pp", "tp"))
    before = dict(model.named_parameters(remove_duplicate=False))
    cuts = parallelize(model, plan.of(list(model.modules())), mesh["tp"])
    after = dict(model.named_parameters(remove_duplicate=False))
    stages.replace({id(before[name]): after[name] for name in before})
    replace_parameters(workload.optimizer, before, after, lambda name, whole: whole)
    one_by_one(workload.optimizer)
    return cuts
