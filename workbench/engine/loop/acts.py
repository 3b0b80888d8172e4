"""The acts: what each one that ``workbench.core.controls`` declares does between two steps, on every rank alike.

An act is a function of the boundary that it is done at and of its checked value. It returns what the log keeps of it.
When it cannot be done, it raises ``ConfigError`` or ``RunError`` on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from workbench.engine.loop.settings import Settings
from workbench.errors import RunError


class TrainingLoop(Protocol):
    """What the training loop can be told to do between two steps. Each is done by all ranks at once."""

    def evaluate(self, step: int) -> None:
        """Evaluate now."""

    def sample(self, step: int) -> None:
        """Let the model write now."""

    def save(self, step: int, *, asked: bool) -> bool:
        """Write a checkpoint; whether it was written. ``asked``: by a person, so that it is kept."""

    def rollback(self, step: int, target: int | str) -> int:
        """Go back to a checkpoint; the step of it. ``ConfigError`` or ``RunError`` when that cannot be."""
        ...


@dataclass(slots=True)
class Hold:
    """Whether the ranks are paused, and after how many more steps they will be (None: no pause is due)."""

    paused: bool = False
    steps_left: int | None = None

    @property
    def state(self) -> str:
        """For the log."""
        return "paused" if self.paused else "running"

    def count_step(self) -> None:
        """A step was trained: pause when it was the last of those that were asked for."""
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left <= 0:
                self.steps_left, self.paused = None, True


@dataclass(slots=True)
class Boundary:
    """The moment after ``step``: what acts can reach, whether training is to end here, and whether a training that ends
    may write its final checkpoint."""

    step: int
    hold: Hold
    settings: Settings
    loop: TrainingLoop
    stop: bool = False
    saves: bool = True


@dataclass(frozen=True, slots=True)
class Change:
    """What the log keeps of an act: the new value and the one before. ``restored``: settings may be others now."""

    value: Any = None
    old: Any = None
    restored: bool = False


def _pause(at: Boundary, value: None) -> Change:
    old = at.hold.state
    at.hold.paused, at.hold.steps_left = True, None
    return Change(at.hold.state, old)


def _resume(at: Boundary, value: None) -> Change:
    old = at.hold.state
    at.hold.paused, at.hold.steps_left = False, None
    return Change(at.hold.state, old)


def _step(at: Boundary, steps: int) -> Change:
    old = at.hold.state
    at.hold.paused, at.hold.steps_left = False, steps
    return Change(steps, old)


def _stop(at: Boundary, after: str) -> Change:
    if after == "checkpoint":
        _save_to_end(at)
    at.stop, at.saves = True, after != "no-checkpoint"
    return Change(after)


def _branch(at: Boundary, options: dict[str, Any]) -> Change:
    _save_to_end(at)
    at.stop = True
    return Change(options)


def _save_to_end(at: Boundary) -> None:
    if not at.loop.save(at.step, asked=True):
        raise RunError("the checkpoint could not be written, so the run continues")


def _evaluate(at: Boundary, value: None) -> Change:
    at.loop.evaluate(at.step)
    return Change()


def _sample(at: Boundary, value: None) -> Change:
    at.loop.sample(at.step)
    return Change()


def _checkpoint(at: Boundary, value: None) -> Change:
    if not at.loop.save(at.step, asked=True):
        raise RunError("the checkpoint could not be written")
    return Change(at.step)


def _rollback(at: Boundary, target: int | str) -> Change:
    before = at.step
    at.step = at.loop.rollback(before, target)
    at.hold.steps_left = None
    return Change(at.step, before, restored=True)


def _alert(at: Boundary, declared: dict[str, Any]) -> Change:
    return Change(declared)  # who evaluates alerts reads it from the log


def _freeze(at: Boundary, pattern: str) -> Change:
    before = at.settings.frozen
    at.settings.freeze(pattern, frozen=True)
    return Change(at.settings.frozen, before)


def _unfreeze(at: Boundary, pattern: str) -> Change:
    before = at.settings.frozen
    at.settings.freeze(pattern, frozen=False)
    return Change(at.settings.frozen, before)


Act = Callable[[Boundary, Any], Change]

#: one for each act of ``workbench.core.controls``
ACTS: dict[str, Act] = {
    "pause": _pause,
    "resume": _resume,
    "step": _step,
    "stop": _stop,
    "evaluate": _evaluate,
    "sample": _sample,
    "checkpoint": _checkpoint,
    "rollback": _rollback,
    "branch": _branch,
    "alert": _alert,
    "freeze": _freeze,
    "unfreeze": _unfreeze,
}
