"""DeepSpeed's engine, as a loop around it can be observed: it takes the optimizer's steps by itself, and knows the norm
of a gradient that its ZeRO stages keep in partitions. This module does not import DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch


class Engine:
    """What can be asked of a ``DeepSpeedEngine``; ``of`` makes one, None for any other model."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.stage = int(engine.zero_optimization_stage())

    @classmethod
    def of(cls, model: torch.nn.Module) -> Engine | None:
        """The engine that ``model`` is."""
        names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__}
        return cls(model) if "deepspeed.runtime.engine.DeepSpeedEngine" in names else None

    @property
    def module(self) -> torch.nn.Module:
        """The user's model."""
        found: torch.nn.Module = self._engine.module
        return found

    @property
    def steps_by(self) -> Any:
        """The object whose ``step`` is one step of the optimizer: with ZeRO, torch's own steps once per partition."""
        return self._engine.optimizer

    @property
    def clips_by(self) -> str:
        """The method of the engine that clips gradients in ``.grad``."""
        return "clip_fp32_gradients"

    @property
    def has_gradients(self) -> bool:
        """Whether the reduced gradients are in ``.grad`` when the optimizer steps."""
        return self.stage == 0 and isinstance(self._engine.optimizer, torch.optim.Optimizer)

    def loss_scale(self) -> float:
        """What the loss of a backward pass was multiplied by."""
        return float(getattr(self._engine.optimizer, "loss_scale", 1.0))

    def norm(self) -> float | None:
        """The norm of the whole reduced gradient of the last step, before clipping; None where it is not computed."""
        # what ``get_global_grad_norm`` of the engine gives, which has it only when its own step is over
        found = getattr(self._engine.optimizer, "_global_grad_norm", None)
        return None if found is None or self.has_gradients else float(found)

    def skipped(self) -> bool:
        """Whether the last step was left out, because gradients were not finite."""
        return bool(getattr(self._engine.optimizer, "overflow", False))
