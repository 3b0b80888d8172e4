"""How far a run is in epochs, and the step it ends with, from what its rank 0 logged of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.numbers import number
from workbench.core.records import EventKind
from workbench.events.decode import as_number, of_kind


@dataclass(slots=True)
class EpochProgress:
    """``epochs`` to train (0: the run counts none, or ends with a step), of ``steps_per_epoch`` (NaN: not known), and
    the last ``step`` (0: not known). ``take`` reads new events; ``at`` gives the epochs that are done."""

    epochs: int = 0
    steps_per_epoch: float = float("nan")
    steps: int = 0
    counts: bool = False
    _done: float = 0.0
    _step: int = 0

    def take(self, events: Columns) -> EpochProgress:
        """Read rows of the table ``events``, in their order."""
        for event in of_kind(events, EventKind.DATA):
            if event.name in ("epochs", "epoch"):
                self._take(event.step, event.fields)
        return self

    def _take(self, step: int, told: dict[str, Any]) -> None:
        numbers = {name: as_number(told.get(name)) for name in ("epochs", "steps_per_epoch", "steps", "done")}
        self.counts, self._step = True, step
        self.epochs, self.steps = (int(np.nan_to_num(numbers[name])) for name in ("epochs", "steps"))
        self.steps_per_epoch, self._done = numbers["steps_per_epoch"], float(np.nan_to_num(numbers["done"]))

    def last_step(self, spec_steps: int) -> int:
        """The step with which the run ends: as it was logged, or the spec's; 0 where nobody knows."""
        return self.steps or spec_steps

    def at(self, step: int) -> float:
        """Epochs that are done after ``step``; within an epoch of unknown length those that ended."""
        share = (step - self._step) / self.steps_per_epoch
        return self._done + (share if np.isfinite(share) else 0.0)

    def words(self, step: int) -> str:
        """``"epoch 1.5 of 3"``; "" for a run that counts none."""
        if not self.counts:
            return ""
        of = f" of {self.epochs}" if self.epochs else ""
        return f"epoch {number(round(self.at(step), 2), 3)}{of}"

    def fraction(self, step: int, spec_steps: int) -> float:
        """The share of the run that is done, 0 to 1; by epochs where the last step is not known."""
        last = self.last_step(spec_steps)
        if last:
            return min(1.0, step / last)
        return min(1.0, self.at(step) / self.epochs) if self.epochs else 0.0
