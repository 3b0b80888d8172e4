"""Low-level ZeRO inside tensor and pipeline parallelism: each replica's ranks split the state of their own parts."""

from __future__ import annotations

import math
from typing import Any

import torch
from colossalai.booster.plugin import HybridParallelPlugin
from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule

from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.colossal.hybrid_plan import (
    parameters_of_earlier_stages,
    policy_for_split,
    split_options,
)
from workbench.engine.frameworks.colossal.plugin import MeshPlan
from workbench.engine.frameworks.colossal.zero_plan import ZeroPlan


class ZeroHybridPlugin(HybridParallelPlugin):
    """HybridParallelPlugin with ZeRO, also in fp32, which upstream refuses (hybrid_parallel_plugin.py:1361) although
    its optimizer keeps the same slices as LowLevelZeroPlugin's does in fp32."""

    precision: Any

    def configure(self, model: Any, optimizer: Any = None, *others: Any, **more: Any) -> Any:
        """As upstream, with the model wrapped before: its precision is read nowhere else."""
        wrapped = HybridParallelModule(
            model,
            precision=self.precision,
            shard_config=self.shard_config,
            dp_group=self.mixed_dp_group,
            tp_group=self.tp_group,
            sp_group=self.sp_group,
            use_ddp=False,
            ddp_config=self.ddp_config,
            custom_policy=self.custom_policy,
        )
        for parameter in wrapped.parameters():
            parameter.data = parameter.data.contiguous()  # slices are taken of a flat view
        precision, self.precision = self.precision, "sliced"
        try:
            return super().configure(wrapped, optimizer, *others, **more)
        finally:
            self.precision = precision


class ZeroInHybridPlan(ZeroPlan, MeshPlan):
    """ZeRO stage 1 beside tensor and pipeline parallelism, or stage 2 beside tensor parallelism."""

    def make_plugin(self) -> Any:
        return ZeroHybridPlugin(
            **split_options(self.spec, self.device, self.policy),
            zero_stage=2 if self.spec.plan.plugin == "zero2" else 1,
            cpu_offload=self.spec.plan.offload,
            overlap_communication=self.device.type == "cuda",  # needs streams: low_level_optim.py:343
            initial_scale=self.initial_scale,
        )

    def boost(self, workload: Workload) -> None:
        self.policy = policy_for_split(workload)
        super().boost(workload)
        if self._reduction is not None:
            self.optimizer.sync_dp_grads = self._reduction.reduce_afterwards
        # upstream's norm counts fused layers wrongly under tp, and waits for stages that have no gradient of a group
        self.optimizer._compute_grad_norm = lambda *args, **kwargs: 0.0
        self._clip = self.optimizer._unscale_and_clip_grads
        if workload.after_split is not None:
            workload.after_split(self.module)

    def replicas(self) -> Any:
        return self.plugin.dp_group

    def foreign_parameters(self) -> list[torch.Tensor]:
        return parameters_of_earlier_stages(self.model, self.here.pp)

    def step(self, global_norm: float | None) -> bool:
        norm = (global_norm or 0.0) * self.loss_scale()
        self.optimizer._unscale_and_clip_grads = lambda gradients, _: self._clip(gradients, norm)
        updated = super().step(global_norm)
        self.framework_norm = math.nan
        return updated
