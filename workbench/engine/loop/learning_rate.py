"""The learning rate: what the schedule says, unless somebody turned it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench.core.controls import SCHEDULE
from workbench.engine.base.group_rates import scaled


class LearningRate:
    """Steps the scheduler and lays a hand-set value (the first group's; others keep their ratio to it) or a factor over
    what it says.

    ``every``: what the scheduler is stepped after. The scheduler always sees its own values, so that ``schedule`` goes
    back to where it would have been. As long as nobody turns anything, the optimizer's groups are not touched.
    """

    def __init__(self, optimizer: Any, scheduler: Any, every: str = "step") -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._every = every
        self._base = [_number(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self._scheduled = [_number(group["lr"]) for group in optimizer.param_groups]
        self._absolute: float | None = None
        self._factor = 1.0

    @property
    def now(self) -> float:
        """The first group's learning rate, in force for the next step."""
        return _number(self._optimizer.param_groups[0]["lr"])

    @property
    def _turned(self) -> bool:
        return self._absolute is not None or self._factor != 1.0

    def advance(self) -> None:
        """After an optimizer step."""
        self._advance(self._scheduler.step if self._scheduler is not None and self._every == "step" else _no_step)

    def advance_schedule(self, *metric: float) -> None:
        """After an epoch or an evaluation, for a scheduler that is stepped then, with a value if it takes one."""
        self._advance(lambda: self._scheduler.step(*metric))

    def _advance(self, step: Callable[[], object]) -> None:
        if self._turned:
            self._write(self._scheduled)
        step()
        if self._scheduler is not None or self._turned:
            self._scheduled = [_number(group["lr"]) for group in self._optimizer.param_groups]
        if self._turned:
            self._lay_over()

    def set(self, value: float | str) -> None:
        """A number, a factor of what is in force (``"x0.5"``), or ``"schedule"``."""
        if not self._turned:  # a ``train_step`` may have stepped a schedule of its own
            self._scheduled = [_number(group["lr"]) for group in self._optimizer.param_groups]
        if value == SCHEDULE:
            self._absolute, self._factor = None, 1.0
        elif isinstance(value, str):
            factor = float(value[1:])
            if self._absolute is not None:
                self._absolute *= factor
            else:
                self._factor *= factor
        else:
            self._absolute, self._factor = value, 1.0
        self._lay_over()

    def _lay_over(self) -> None:
        absolute = self._absolute
        rates = self._scheduled
        self._write([lr * self._factor for lr in rates] if absolute is None else scaled(rates, absolute))

    def _write(self, values: list[float]) -> None:
        for group, value in zip(self._optimizer.param_groups, values, strict=True):
            if isinstance(group["lr"], int | float):
                group["lr"] = value
            else:  # a tensor that a captured graph reads
                group["lr"].fill_(value)

    def state(self) -> dict[str, Any]:
        """For a checkpoint; the scheduler's own state is not in it."""
        hand_set = {"absolute": self._absolute, "factor": self._factor}
        return {"base": self._base, "scheduled": self._scheduled, **hand_set}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo ``state``; the optimizer's groups and the scheduler are restored already.

        Where this run began with another learning rate than the one that was saved, the schedule goes on at the same
        place with the new rate, and what was set by hand is forgotten.
        """
        self._scheduled = list(state["scheduled"])
        self._absolute, self._factor = state["absolute"], state["factor"]
        if state["base"] == self._base:
            return
        ratios = [new / old if old else 1.0 for new, old in zip(self._base, state["base"], strict=True)]
        self._scheduled = [lr * ratio for lr, ratio in zip(self._scheduled, ratios, strict=True)]
        self._absolute, self._factor = None, 1.0
        self._write(self._scheduled)
        for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
            if "initial_lr" in group:
                group["initial_lr"] = base
        if hasattr(self._scheduler, "base_lrs"):
            self._scheduler.base_lrs = list(self._base)


def _no_step() -> None:
    """For a scheduler that is not stepped now."""


def _number(value: Any) -> float:
    return float(value)
