"""What two trainings and their differences say at the first step where the differences are too large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from workbench.verification.compare import relative
from workbench.verification.training import Training


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The first step that differs (0: the weights before the first), and what differs there.

    ``loss``: whether the loss does. ``gradients`` and ``weights``: names of tensors, in the order of the model.
    ``tolerances``: of gradients and of weights by name, at this step. ``accumulate`` and ``micro_batches``: of the
    plan. ``clips``: whether gradients are clipped. ``roundoff``: unit roundoff of the weights that forward passes use.
    """

    plan: Training
    reference: Training
    step: int
    loss: bool
    gradients: Sequence[str]
    weights: Sequence[str]
    tolerances: dict[str, dict[str, float]] = field(default_factory=dict)
    accumulate: int = 1
    micro_batches: int = 1
    clips: bool = False
    roundoff: float = 2.0**-24

    def tolerance(self, kind: str, name: str) -> float:
        """Of a tensor of ``kind``, for what is compared in detail: at least a thousandth, as it need not be exact."""
        allowed = self.tolerances.get(kind, {}).get(name, 0.0)
        return max(1e-3, allowed if np.isfinite(allowed) else 0.0)

    def right(self, kind: str, name: str) -> np.ndarray:
        """The reference's tensor at this step."""
        return self.reference.whole(kind, name, self.step)

    def is_right(self, kind: str, name: str, values: np.ndarray) -> bool:
        """Whether ``values`` are those of the reference."""
        return relative(values, self.right(kind, name)) <= self.tolerance(kind, name)

    def update(self, training: Training, name: str) -> np.ndarray:
        """How this step changed a weight."""
        return training.whole("weight", name, self.step) - training.whole("weight", name, self.step - 1)


def factor(values: np.ndarray, right: np.ndarray, tolerance: float) -> float | None:
    """``c`` where ``values`` are ``c`` times ``right`` up to ``tolerance``; None where they are no multiple of it."""
    square = float(right @ right)
    if not np.isfinite(values).all() or square == 0.0:
        return None
    c = float(values @ right) / square
    rest = float(np.linalg.norm(values - c * right))
    return c if rest <= tolerance * square**0.5 else None


def listed(names: Sequence[str], most: int = 3) -> str:
    """``a, b, c and 4 more``."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
