"""Calls ``on_step`` and ``on_epoch`` of a cell. An error in one of them ends the run, and says which it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from workbench.engine.base.strategy import Strategy

Hook = Callable[[int, Mapping[str, Any]], Any]


def may_draw(optimizer: Any) -> bool:
    """Whether the update of an optimizer may draw random numbers: torch's own draw none."""
    hooks = (getattr(optimizer, f"_optimizer_step_{name}_hooks", None) for name in ("pre", "post"))
    return any(hooks) or not type(optimizer).__module__.startswith("torch.optim.")


class Hooks:
    """The hooks of a cell; what it does not define is not called. An epoch's ``loss`` is the mean over its steps.

    ``strategy``: the rank's, as a hook may change weights.
    """

    def __init__(self, hooks: Mapping[str, Hook], strategy: Strategy) -> None:
        self._hooks = dict(hooks)
        self._strategy = strategy
        self._sum, self._count = 0.0, 0

    @property
    def follow_epochs(self) -> bool:
        """Whether there is an ``on_epoch``."""
        return "on_epoch" in self._hooks

    def stepped(self, step: int, values: Mapping[str, Any], loss: float | None) -> None:
        """After each step. ``loss``: that of the global batch; None of a step that was skipped."""
        if self.follow_epochs and loss is not None:
            self._sum, self._count = self._sum + loss, self._count + 1
        if "on_step" in self._hooks:
            self._call("on_step", step, values)

    def epoch_ended(self, epoch: int, values: Mapping[str, Any]) -> None:
        """After the last step of an epoch (from 1), its evaluation and its schedule."""
        if self.follow_epochs:
            mean = {"loss": self._sum / self._count} if self._count else {}
            self._call("on_epoch", epoch, {**values, **mean})
        self._sum, self._count = 0.0, 0

    def state(self) -> list[float]:
        """What an epoch's mean is made of, for a checkpoint."""
        return [self._sum, self._count]

    def restore(self, state: list[float]) -> None:
        """Undo ``state``."""
        self._sum, self._count = float(state[0]), int(state[1])

    def _call(self, name: str, number: int, values: Mapping[str, Any]) -> None:
        try:
            with self._strategy.alike(name), self._strategy.editing(name):
                self._hooks[name](number, values)
        except Exception as error:
            error.add_note(f"raised in {name}({number}, values) of the cell")
            raise
