"""The loss scale of fp16 where every rank has a part of each gradient: all ranks skip a step, or none."""

from __future__ import annotations

from typing import Any

import torch

_GROWTH, _BACKOFF, _INTERVAL = 2.0, 0.5, 2000


class SharedLossScale:
    """As ``torch.amp.GradScaler``, with the overflow found in the global norm, which all ranks know. ``enabled`` False:
    the scale is 1 and stays so."""

    def __init__(self, first: float, *, enabled: bool) -> None:
        self._enabled = enabled
        self._scale = first if enabled else 1.0
        self._good_steps = 0

    def is_enabled(self) -> bool:
        """Whether losses are scaled."""
        return self._enabled

    def get_scale(self) -> float:
        """What losses are multiplied by."""
        return self._scale

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss for backward."""
        return loss * self._scale if self._enabled else loss

    def update(self, *, overflowed: bool) -> None:
        """After each step: halve the scale where it overflowed, double it after 2000 steps that did not."""
        if not self._enabled:
            return
        self._good_steps = 0 if overflowed else self._good_steps + 1
        if overflowed:
            self._scale *= _BACKOFF
        elif self._good_steps == _INTERVAL:
            self._scale, self._good_steps = self._scale * _GROWTH, 0

    def state_dict(self) -> dict[str, Any]:
        """As ``LossScaler.state_dict``."""
        return {"scale": self._scale, "good_steps": self._good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As ``LossScaler.load_state_dict``."""
        self._scale, self._good_steps = state["scale"], state["good_steps"]
