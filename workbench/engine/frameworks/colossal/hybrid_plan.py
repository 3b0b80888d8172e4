"""Colossal-AI's hybrid plugin, and what every plan does that splits a model as it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from colossalai.booster.plugin import HybridParallelPlugin

from workbench.core.config import TrainSpec
from workbench.engine.base.parts import BatchObserver
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.colossal.local_gradients import before_pipeline_sync
from workbench.engine.frameworks.colossal.module_state import ScalerState
from workbench.engine.frameworks.colossal.pipeline_parallel.schedules import SCHEDULES
from workbench.engine.frameworks.colossal.plugin import MeshPlan, Wanted, record_skips
from workbench.engine.frameworks.colossal.policies import (
    UnchangedPolicy,
    compiled_inside,
    policy_for,
    recompute_without_reentry,
)
from workbench.engine.frameworks.colossal.sequence_parallel import SequenceReduction, mark_biases
from workbench.engine.frameworks.torch_common.ddp_reduction import DdpReduction
from workbench.engine.frameworks.torch_common.local_gradients import before_ddp_reduces
from workbench.engine.state.layout import LossScaler


def policy_for_split(workload: Workload) -> Any:
    """The policy by which Colossal-AI splits the workload's model, which is made ready for it."""
    workload.model = compiled_inside(workload.model)
    recompute_without_reentry(workload.model)
    return policy_for(workload.model)


def split_options(spec: TrainSpec, device: torch.device, policy: Any) -> dict[str, Any]:
    """Options of ``HybridParallelPlugin`` that say how a model is split, and how it is clipped."""
    plan = spec.plan
    return {
        "tp_size": plan.tp,
        "pp_size": plan.pp,
        "precision": spec.precision,
        "num_microbatches": plan.micro_batches if plan.pp > 1 else None,
        "pp_style": plan.schedule,
        "num_model_chunks": SCHEDULES[plan.schedule].chunks,
        "overlap_p2p": device.type == "cuda",  # else its last message is dropped (interleaved_pp.py:576)
        "max_norm": spec.clip,
        "parallel_output": False,  # a criterion sees whole logits
        "make_vocab_size_divisible_by": 1,
        "custom_policy": policy,
    }


def parameters_of_earlier_stages(model: Any, stage: int) -> list[torch.Tensor]:
    """Parameters of pipeline stage ``stage`` that are tied to those of an earlier one, which counts them."""
    return [stages[stage] for stages in model.shared_params if stage in stages and stage != min(stages)]


class HybridPlan(MeshPlan):
    """HybridParallelPlugin: tensor, pipeline and data parallel."""

    def make_plugin(self) -> Any:
        plan = self.spec.plan
        return HybridParallelPlugin(
            **split_options(self.spec, self.device, self.policy),
            find_unused_parameters=not self.spec.recipe,
            initial_scale=self.initial_scale,
            sp_size=1,  # positions are shared over the tensor-parallel ranks
            enable_sequence_parallelism=bool(plan.sequence_parallel),
            sequence_parallelism_mode=plan.sequence_parallel or None,
        )

    def boost(self, workload: Workload) -> None:
        self.policy = policy_for_split(workload) if self.mesh.replica_size > 1 else UnchangedPolicy()
        super().boost(workload)
        if self.spec.plan.sequence_parallel:
            mark_biases(self.module)
        if workload.after_split is not None:
            workload.after_split(self.module)
        if self.spec.precision == "fp16":
            record_skips(self, self.optimizer.mixed_precision)

    def reduction_of(self) -> DdpReduction | SequenceReduction | None:
        if self.spec.plan.sequence_parallel and self.mesh.pp == 1:  # a pipeline reduces by itself
            return SequenceReduction(self.model)
        if not self.is_whole or self.mesh.dp == 1:
            return None
        return DdpReduction(self.model.module, afterwards=not self.spec.recipe)

    def foreign_parameters(self) -> list[torch.Tensor]:
        return parameters_of_earlier_stages(self.model, self.here.pp)

    def loss_scale(self) -> float:
        return self.optimizer.mixed_precision.loss_scale if self.spec.precision == "fp16" else 1.0

    def set_clip(self, clip: float) -> None:
        super().set_clip(clip)
        self.optimizer.max_norm = clip

    def masters(self) -> Mapping[Any, torch.Tensor]:
        found = getattr(self.optimizer, "working_to_master_map", {})
        return {id(parameter): master for parameter, master in found.items()}

    def scaler_of(self) -> LossScaler | None:
        return ScalerState(self.optimizer.mixed_precision.grad_scaler) if self.spec.precision == "fp16" else None

    def watching(self, show: BatchObserver, wanted: Wanted, keep: bool) -> AbstractContextManager[None]:
        items = self.wanted(wanted)
        if self.mesh.pp > 1:
            return before_pipeline_sync(self.model, items, self.parts, show, keep=keep)
        if self.reduction is not None:
            return self.reduction.watching(items, self.parts, show, keep=keep)
        return before_ddp_reduces(
            items, self.parts, show, keep=keep, is_last=lambda: bool(self.model.require_grad_sync)
        )

    def step(self, global_norm: float | None) -> bool:
        self.skipped = False
        if global_norm is not None:
            # Upstream's norm counts fused layers wrongly under tp (hybrid_parallel_plugin.py:501), and in mixed
            # precision it wants one with the loss scale in it.
            self.optimizer._compute_grad_norm = self._ours(global_norm, self.loss_scale())
        self.framework_norm = math.nan
        self.optimizer.step()
        self.optimizer.zero_grad()
        return not self.skipped

    def _ours(self, global_norm: float, scale: float) -> Callable[..., float]:
        """In place of upstream's norm, which is asked too where somebody wants to see it."""

        def norm(pairs: Any, *args: Any, **kwargs: Any) -> float:
            if self.watch_framework_norm:
                self.framework_norm = float(type(self.optimizer)._compute_grad_norm(self.optimizer, pairs)) / scale
            return global_norm * scale

        return norm
