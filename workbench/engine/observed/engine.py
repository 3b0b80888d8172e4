"""A library's engine or wrapper around a model, as a loop that trains by it can be observed."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Engine(Protocol):
    """What is asked of an engine, which steps its optimizer by itself."""

    @property
    def kind(self) -> str:
        """The plan's plugin."""

    @property
    def unseen(self) -> str:
        """What cannot be seen, as a sentence; "" when everything can."""

    @property
    def has_gradients(self) -> bool:
        """Whether the reduced gradients can be read when it steps."""

    @property
    def sharded(self) -> str:
        """The axes over which ranks have parts of the reduced gradients."""

    @property
    def weights_of(self) -> torch.optim.Optimizer | None:
        """The optimizer that updates the model's own weights; None where copies of them are updated."""

    @property
    def stages(self) -> int:
        """Stages of a pipeline."""

    @property
    def micro_batches(self) -> int:
        """How many go through the stages in a step."""

    @property
    def place(self) -> tuple[int, int]:
        """This rank's replica and stage."""

    @property
    def module(self) -> torch.nn.Module:
        """The user's model."""

    @property
    def called(self) -> torch.nn.Module:
        """The module whose calls are those of a micro-batch."""

    @property
    def steps_by(self) -> Any:
        """The object whose ``step`` is one step of the optimizer."""

    @property
    def clips_by(self) -> str:
        """The method of the model that clips gradients in ``.grad``; "" where they are seen before it steps."""

    def loss_scale(self) -> float:
        """What the loss of a backward pass is multiplied by."""

    def fault(self) -> str:
        """What this engine computes otherwise than its configuration says; "" for nothing."""

    def stepped(self, result: Any) -> None:
        """Its step is over, and returned ``result``."""

    def norm(self) -> float | None:
        """The norm of the whole reduced gradient of the last step, before clipping; None where it is not computed."""

    def skipped(self) -> bool:
        """Whether the last step was left out, because gradients were not finite."""
