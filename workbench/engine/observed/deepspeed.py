"""DeepSpeed's engine, as a loop around it can be observed: it takes the optimizer's steps by itself, and knows the norm
of a gradient that its ZeRO stages, and its optimizers of half precision, keep in copies of their own. Its pipeline
engine takes whole steps, of micro-batches that go through stages. This module does not import DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch


class DeepSpeedEngine:
    """DeepSpeed's engine as an ``Engine``; ``of`` makes one, None for any other model."""

    kind = "deepspeed"
    sharded = ""
    #: in ``.grad``, which is clipped in place
    clips_by = "clip_fp32_gradients"

    def __init__(self, engine: Any, ranks: int) -> None:
        self._engine = engine
        self.stages = int(engine.num_stages) if "PipelineEngine" in _names(engine) else 1
        is_whole = int(engine.zero_optimization_stage()) == 0
        self.has_gradients = is_whole and isinstance(engine.optimizer, torch.optim.Optimizer)
        self.weights_of = engine.optimizer if self.has_gradients else None
        self.unseen = self._unseen(ranks)

    @classmethod
    def of(cls, model: torch.nn.Module, ranks: int) -> DeepSpeedEngine | None:
        """The engine that ``model`` is, on ``ranks`` ranks."""
        return cls(model, ranks) if "DeepSpeedEngine" in _names(model) else None

    def _unseen(self, ranks: int) -> str:
        if not self.has_gradients:
            why = "DeepSpeed keeps gradients and weights in copies of its own"
            return f"{why}: of gradients the global norm alone is seen"
        why = "DeepSpeed reduces gradients before they can be seen: local gradients are not seen"
        if 1 < self.stages < ranks:
            why += f"; it counts ranks stage by stage: stage s is on {ranks // self.stages} ranks from number "
            why += f"{ranks // self.stages} * s on, whatever is shown as their place"
        return why

    @property
    def module(self) -> torch.nn.Module:
        """The user's model."""
        found: torch.nn.Module = self._engine.module
        return found

    @property
    def called(self) -> torch.nn.Module:
        """The module whose calls are those of a micro-batch."""
        return self.module if self.stages > 1 else self._engine

    @property
    def micro_batches(self) -> int:
        """How many go through the stages in a step."""
        return int(self._engine.gradient_accumulation_steps())

    @property
    def place(self) -> tuple[int, int]:
        """This rank's replica and stage. DeepSpeed counts ranks stage by stage."""
        grid = self._engine.grid
        return int(grid.get_data_parallel_id()), int(grid.get_stage_id())

    @property
    def steps_by(self) -> Any:
        """The object whose ``step`` is one step of the optimizer: with ZeRO, torch's own steps once per partition."""
        return self._engine.optimizer

    def loss_scale(self) -> float:
        """What the loss of a backward pass was multiplied by: ``backward`` of the engine does so for the optimizers of
        its ZeRO stages only (deepspeed 0.19.8, runtime/engine.py:3417)."""
        return self._own_scale() if "ZeROOptimizer" in _names(self._engine.optimizer) else 1.0

    def _own_scale(self) -> float:
        return float(getattr(self._engine.optimizer, "loss_scale", 1.0))

    def fault(self) -> str:
        """What this engine computes otherwise than its configuration says; "" for nothing."""
        scale = self._own_scale()
        if scale == self.loss_scale():
            return ""
        return (
            f"DeepSpeed divides the gradients by its loss scale ({scale:g}), and its backward does not multiply the "
            "loss by it: each update is that much smaller than the rate says. Use ZeRO stage 1 or 2, or bf16"
        )

    def stepped(self, result: Any) -> None:
        """As ``Engine.stepped``: the optimizer itself is asked."""

    def norm(self) -> float | None:
        """The norm of the whole reduced gradient of the last step, before clipping; None where it is not computed."""
        # what ``get_global_grad_norm`` of the engine gives, which has it only when its own step is over
        found = getattr(self._engine.optimizer, "_global_grad_norm", None)
        if found is None or self.has_gradients:
            return None
        # of a loss that was not multiplied, the fused optimizer divides the norm all the same
        is_divided = "FP16_Optimizer" in _names(self._engine.optimizer)
        return float(found) * (self._own_scale() if is_divided else 1.0)

    def skipped(self) -> bool:
        """Whether the last step was left out, because gradients were not finite."""
        return bool(getattr(self._engine.optimizer, "overflow", False))


def _names(found: Any) -> set[str]:
    """Names of DeepSpeed's classes that an object is of."""
    return {kind.__qualname__ for kind in type(found).__mro__ if kind.__module__.startswith("deepspeed.")}
