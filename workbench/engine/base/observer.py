"""The seam for everything that watches a training step: small objects that the trainer tells where it is.

An observer never changes what is trained and never communicates on its own account. The trainer calls, on every rank
and in this order::

    begins(step, watch)
    phase("data"), batch(step, batch)
    phase("forward_backward"), around(step) entered and left
    phase("optimizer"), reduced(step)      # gradients are reduced, not clipped yet
    updated(step, skipped)
    ends(step)
    accounted(step, cost_ms)

and after the last step, however the run ended, ``close()``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from workbench.engine.base.batch import Batch


class StepObserver:
    """Does nothing; an observer overrides what it needs. ``cost_ms``: what it cost in the step that just ended."""

    cost_ms: float = 0.0

    def propose(self, step: int) -> int:
        """Rank 0, during ``step``: what to watch in ``step + 1``, a number that all ranks then get as ``watch``."""
        return 0

    def begins(self, step: int, watch: int) -> None:
        """A step begins; ``watch`` is the agreed sum of the proposals."""

    def phase(self, name: str) -> None:
        """The rank enters this phase."""

    def batch(self, step: int, batch: Batch) -> None:
        """This replica's share of the global batch, on the host."""

    def around(self, step: int) -> AbstractContextManager[None]:
        """Entered around forward and backward."""
        return nullcontext()

    def reduced(self, step: int) -> None:
        """Gradients are reduced and not clipped; the optimizer has not stepped."""

    def updated(self, step: int, skipped: bool) -> None:
        """The optimizer has stepped, unless ``skipped``."""

    def ends(self, step: int) -> None:
        """The step is over."""

    def accounted(self, step: int, cost_ms: float) -> None:
        """All observers have ended the step: what watching it cost, theirs and everything else."""

    def close(self) -> None:
        """The run is over: undo what was done to the process, write what is left."""

    def settings(self) -> dict[str, Any]:
        """Values of the controls (``workbench.core.controls``) that this observer applies, by name."""
        return {}

    def set(self, name: str, value: Any) -> None:
        """Set one of ``settings`` between two steps, on every rank at the same one; ``value`` is checked."""

    def rolled_back(self, step: int) -> None:
        """Training went back to a checkpoint: the next step is ``step + 1`` again. What is still to be logged of the
        steps before is logged now, or never."""
