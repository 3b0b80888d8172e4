"""What differs between Colossal-AI's plugins: one small class each, all with the same verbs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from workbench.engine.base.parts import BatchObserver
from workbench.engine.base.workload import Workload
from workbench.engine.communication.checks import exchange_of
from workbench.engine.frameworks.colossal.gemini_plan import GeminiPlan
from workbench.engine.frameworks.colossal.local_gradients import before_pipeline_sync
from workbench.engine.frameworks.colossal.module_state import ScalerState
from workbench.engine.frameworks.colossal.pipeline_parallel.schedules import SCHEDULES
from workbench.engine.frameworks.colossal.plugin import AUTOCAST_TYPES, MeshPlan, Plan, Wanted, record_skips
from workbench.engine.frameworks.colossal.sequence_parallel import SequenceReduction, mark_biases
from workbench.engine.frameworks.colossal.zero_plan import ZeroPlan
from workbench.engine.frameworks.torch_common.ddp_reduction import DdpReduction
from workbench.engine.frameworks.torch_common.local_gradients import before_ddp_reduces
from workbench.engine.state.layout import LossScaler


class DdpPlan(Plan):
    """TorchDDPPlugin; mixed precision is torch's autocast over fp32 weights, in fp16 with a gradient scaler.

    Upstream's own mixed precision for this plugin has no bf16 (abstract class) and breaks ``no_sync`` in fp16.
    """

    def make_plugin(self) -> Any:
        from colossalai.booster.plugin import TorchDDPPlugin

        is_fp16 = self.spec.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=self.initial_scale, enabled=is_fp16)
        return TorchDDPPlugin(find_unused_parameters=not self.spec.recipe)

    def reduction_of(self) -> DdpReduction:
        ddp = self.model.module
        self.exchange = exchange_of(self.spec, self.module, ddp.process_group, self.loss_scale)
        return DdpReduction(ddp, afterwards=not self.spec.recipe, exchange=self.exchange)

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST_TYPES.get(self.spec.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(self.scaler.scale(loss))

    def loss_scale(self) -> float:
        return self.scaler.get_scale()

    def scaler_of(self) -> LossScaler | None:
        return self.scaler if self.scaler.is_enabled() else None

    def watching(self, show: BatchObserver, wanted: Wanted, keep: bool) -> AbstractContextManager[None]:
        assert self.reduction is not None
        return self.reduction.watching(self.wanted(wanted), self.parts, show, keep=keep)

    def step(self, global_norm: float | None) -> bool:
        optimizer = self.optimizer.optim
        self.scaler.unscale_(optimizer)
        if global_norm is not None and global_norm > self.clip:
            gradients = [item.parameter.grad for item in self.held if item.parameter.grad is not None]
            torch._foreach_mul_(gradients, self.clip / (global_norm + 1e-6))
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return self.scaler.get_scale() >= before


class HybridPlan(MeshPlan):
    """HybridParallelPlugin: tensor, pipeline and data parallel."""

    def make_plugin(self) -> Any:
        from colossalai.booster.plugin import HybridParallelPlugin

        plan = self.spec.plan
        return HybridParallelPlugin(
            tp_size=plan.tp,
            pp_size=plan.pp,
            precision=self.spec.precision,
            num_microbatches=plan.micro_batches if plan.pp > 1 else None,
            pp_style=plan.schedule,
            num_model_chunks=SCHEDULES[plan.schedule].chunks,
            overlap_p2p=self.device.type == "cuda",  # else its last message is dropped (interleaved_pp.py:576)
            find_unused_parameters=not self.spec.recipe,
            initial_scale=self.initial_scale,
            max_norm=self.spec.clip,
            parallel_output=False,  # a criterion sees whole logits
            make_vocab_size_divisible_by=1,
            custom_policy=self.policy,
            sp_size=1,  # positions are shared over the tensor-parallel ranks
            enable_sequence_parallelism=bool(plan.sequence_parallel),
            sequence_parallelism_mode=plan.sequence_parallel or None,
        )

    def boost(self, workload: Workload) -> None:
        from workbench.engine.frameworks.colossal.policies import (
            UnchangedPolicy,
            compiled_inside,
            policy_for,
            recompute_without_reentry,
        )

        if self.mesh.tp * self.mesh.pp > 1:
            workload.model = compiled_inside(workload.model)
            recompute_without_reentry(workload.model)
            self.policy = policy_for(workload.model)
        else:
            self.policy = UnchangedPolicy()
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
        return [
            stages[self.here.pp]
            for stages in self.model.shared_params
            if self.here.pp in stages and self.here.pp != min(stages)
        ]

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


PLANS: dict[str, type[Plan]] = {
    "ddp": DdpPlan,
    "zero1": ZeroPlan,
    "zero2": ZeroPlan,
    "gemini": GeminiPlan,
    "hybrid": HybridPlan,
}
