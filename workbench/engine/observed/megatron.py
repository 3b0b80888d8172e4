"""Megatron's DDP and its optimizer, as a loop around them can be observed: gradients are in the buffers of the DDP
(``main_grad``), and the optimizer clips them and steps. This module does not import Megatron."""

from __future__ import annotations

import gc
import sys
from typing import Any

import torch

from workbench.engine.frameworks.megatron.buffers import GradientBuffers

_PACKAGE = "megatron."
_OPTIMIZERS = "megatron.core.optimizer."


class MegatronEngine:
    """Megatron's ``DistributedDataParallel`` and the optimizer around torch's as an ``Engine``; ``of`` makes one, None
    for any other model."""

    kind = "megatron"
    stages = micro_batches = 1
    place = (0, 0)
    #: gradients are seen before the optimizer clips them
    clips_by = ""

    def __init__(self, ddp: Any, optimizer: torch.optim.Optimizer) -> None:
        self.called: torch.nn.Module = ddp
        self.module = _users_model(ddp)
        self.steps_by = _around(optimizer)
        #: None where nothing can be read
        self.buffers = GradientBuffers(ddp) if hasattr(ddp, "bucket_groups") and _is_whole(ddp) else None
        self.has_gradients = self.buffers is not None
        self.sharded = "dp" if self.buffers is not None and self.buffers.is_split else ""
        updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        has_weights = any(id(parameter) in updated for parameter in self.module.parameters())
        self.weights_of = optimizer if has_weights else None
        #: whether the reduced gradient is the mean of the local ones: else they are divided later, by all tokens
        self.has_local = self.has_gradients and not ddp.config.calculate_per_token_loss
        self.schedules = sys.modules.get("megatron.core.pipeline_parallel.schedules")
        self._result: Any = None

    @classmethod
    def of(cls, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> MegatronEngine | None:
        """The wrapper that ``model`` is, whose weights ``optimizer`` updates."""
        is_wrapper = any(kind.__module__.startswith(_PACKAGE) for kind in type(model).__mro__)
        return cls(model, optimizer) if is_wrapper and hasattr(model, "finish_grad_sync") else None

    @property
    def unseen(self) -> str:
        """As ``Engine.unseen``."""
        if not self.has_gradients:
            return (
                "each rank has a part of the model, as Megatron splits it: of gradients the global norm alone is seen"
            )
        if not self.has_local:
            return (
                "Megatron divides gradients by the tokens of all ranks once they are reduced: local ones are not seen"
            )
        return "" if self.weights_of is not None else "Megatron's optimizer updates copies: weights are not seen"

    def loss_scale(self) -> float:
        """As ``Engine.loss_scale``."""
        return 1.0 if self.steps_by is None else float(self.steps_by.get_loss_scale())

    def fault(self) -> str:
        """As ``Engine.fault``."""
        return ""

    def stepped(self, result: Any) -> None:
        """As ``Engine.stepped``: whether it updated weights, the norm, and how many elements were zero."""
        self._result = result

    def norm(self) -> float | None:
        """As ``Engine.norm``: computed where gradients are clipped."""
        if not isinstance(self._result, tuple) or not self.steps_by.config.clip_grad:
            return None
        return None if self._result[1] is None else float(self._result[1])

    def skipped(self) -> bool:
        """As ``Engine.skipped``."""
        return isinstance(self._result, tuple) and not self._result[0]


def _users_model(ddp: Any) -> torch.nn.Module:
    """The model in Megatron's wrappers: of DDP, and of half precision."""
    found: Any = ddp.module
    while type(found).__qualname__ == "Float16Module":
        found = found.module
    module: torch.nn.Module = found
    return module


def _is_whole(ddp: Any) -> bool:
    """Whether each rank has the whole model, for which alone a parameter's gradient is that of a layer."""
    groups = [ddp.tp_group, ddp.pp_group, ddp.ep_group]
    flat = [group for each in groups for group in (each if isinstance(each, list) else [each])]
    return all(group.size() == 1 for group in flat)


def _around(optimizer: torch.optim.Optimizer) -> Any:
    """Megatron's optimizer around torch's, the outermost one; None where a loop steps torch's by itself."""
    wraps = [
        found
        for found in gc.get_objects()
        if str(type(found).__module__).startswith(_OPTIMIZERS) and hasattr(type(found), "step_with_ready_grads")
    ]
    inner = [found for found in wraps if vars(found).get("optimizer") is optimizer]
    chains = [each for each in wraps if any(one in inner for one in vars(each).get("chained_optimizers", ()))]
    return next(iter([*chains, *inner]), None)
