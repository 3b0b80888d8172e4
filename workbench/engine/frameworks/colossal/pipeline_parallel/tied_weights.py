"""Weights that two stages of a pipeline hold, as an embedding that is the head too."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def add_up_trained() -> None:
    """Let the stages add up the gradients of those tied weights only that are trained: a frozen one has none."""
    from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule

    def sync_shared_params(self: Any) -> None:
        for stages, group in zip(self.shared_params, self.shared_param_process_groups, strict=True):
            weight = stages.get(self.stage_manager.stage)
            if weight is None or not weight.requires_grad:
                continue
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            dist.all_reduce(weight.grad, group=group)

    HybridParallelModule.sync_shared_params = sync_shared_params
