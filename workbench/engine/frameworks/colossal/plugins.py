"""What differs between Colossal-AI's plugins: one small class each, all with the same verbs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.parts import BatchObserver
from workbench.engine.communication.checks import exchange_of, weight_exchange_of
from workbench.engine.frameworks.colossal.gemini_plan import GeminiPlan
from workbench.engine.frameworks.colossal.hybrid_plan import HybridPlan
from workbench.engine.frameworks.colossal.plugin import Plan, Wanted
from workbench.engine.frameworks.colossal.zero_in_hybrid import ZeroInHybridPlan
from workbench.engine.frameworks.colossal.zero_plan import ZeroPlan
from workbench.engine.frameworks.torch_common.ddp_reduction import DdpReduction
from workbench.engine.frameworks.torch_common.losses.whole_model import AUTOCAST_TYPES
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
        self.weights_exchange = weight_exchange_of(self.spec, self.module, ddp.process_group)
        return DdpReduction(
            ddp,
            afterwards=not self.spec.recipe,
            exchange=self.exchange,
            weights=self.weights_exchange,
            in_sight=bool(self.spec.network),
        )

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


def plan_class(spec: TrainSpec) -> type[Plan]:
    """The class that trains a spec's plan."""
    found = _PLANS[spec.plan.plugin]
    return ZeroInHybridPlan if found is ZeroPlan and spec.plan.tp * spec.plan.pp > 1 else found


_PLANS: dict[str, type[Plan]] = {
    "ddp": DdpPlan,
    "hybrid": HybridPlan,
    "zero1": ZeroPlan,
    "zero2": ZeroPlan,
    "gemini": GeminiPlan,
}
