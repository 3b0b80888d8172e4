"""What of an observed loop can be steered: its learning rate and weight decay, pause, stop, and checkpoints that it
writes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workbench.core.controls import Control
from workbench.core.records import EventKind
from workbench.engine.base.batch import Batch
from workbench.engine.loop.acts import Boundary, Change
from workbench.engine.loop.learning_rate import LearningRate
from workbench.engine.loop.settings import Settings
from workbench.engine.loop.steering import Steering
from workbench.engine.observed.agreement import ObservedControl
from workbench.errors import ConfigError, RunError
from workbench.rundir.log import RankLogWriter

_THE_LOOPS = "the loop is the script's own"
#: settings and acts that only a loop of ours has -> what to do instead
_NOT_HERE = {
    "clip": f"{_THE_LOOPS}: change its gradient clipping there",
    "accumulate": f"{_THE_LOOPS}: change its gradient accumulation there",
    "evaluate": f"{_THE_LOOPS}: evaluate there",
    "sample": f"{_THE_LOOPS}: let the model write there",
    "rollback": f"{_THE_LOOPS}: load the checkpoint there and start again",
    "branch": f"{_THE_LOOPS}: start the script again from its checkpoint",
    "freeze": f"{_THE_LOOPS}: set requires_grad there",
    "unfreeze": f"{_THE_LOOPS}: set requires_grad there",
}

#: writes a checkpoint of the state after a step; returns where it is, or None
OnCheckpoint = Callable[[int], Any]


class NoData:
    """A ``BatchSource`` of a loop that reads its own data."""

    def batches(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Batch]:
        """Yields nothing: the loop has batches of its own."""
        return iter(())

    def indices(self, number: int, dp: int, dp_size: int) -> list[int] | None:
        """Returns None: the samples of the loop's batches are not known."""
        return None


class HandSetRate(LearningRate):
    """A learning rate that is laid over the loop's own while its optimizer steps, and taken away afterwards: whatever
    sets the rate in between, a scheduler or the script, sees its own values."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer, None)
        self._last: float | None = None

    @property
    def now(self) -> float:
        """The first group's learning rate in the last step of the optimizer, or in the next one if it was set since."""
        return super().now if self._last is None else self._last

    def begin(self) -> None:
        """The optimizer is about to step."""
        if self._turned:
            self._scheduled = self._own()
            self._lay_over()
        self._last = super().now

    def end(self) -> None:
        """The optimizer has stepped."""
        if self._turned:
            self._write(self._scheduled)

    def set(self, value: float | str) -> None:
        """As ``LearningRate.set``."""
        self._scheduled = self._own()
        super().set(value)
        self._last = super().now
        self._write(self._scheduled)

    def _own(self) -> list[float]:
        return [float(group["lr"]) for group in self._optimizer.param_groups]


class ObservedSettings(Settings):
    """As ``Settings``, without those that are the loop's own."""

    lr: HandSetRate

    def follow(self, optimizer: Any) -> None:
        """The settings are those of ``optimizer`` from now on."""
        self.workload.optimizer = optimizer
        self.lr = HandSetRate(optimizer)

    def now(self, name: str) -> Any:
        """As ``Settings.now``; None for what is the loop's own."""
        return None if name in _NOT_HERE else super().now(name)


class ObservedSteering(Steering):
    """As ``Steering``: refuses what the loop alone could do, and everything while ranks do not agree."""

    _control: ObservedControl

    def _applied(self, control: Control, value: Any, here: Boundary) -> Change:
        self._control.check()
        if control.name in _NOT_HERE:
            raise ConfigError(f"{control.name}: {_NOT_HERE[control.name]}")
        return super()._applied(control, value, here)


class OwnCheckpoints:
    """The ``TrainingLoop`` that acts reach: it saves through ``on_checkpoint``, and does nothing else."""

    def __init__(self, log: RankLogWriter, on_checkpoint: OnCheckpoint | None, enter: Callable[[str], None]) -> None:
        self._log = log
        self._on_checkpoint = on_checkpoint
        self._enter = enter

    def evaluate(self, step: int) -> None:
        """Raises ``ConfigError``: only the loop itself could do it."""
        raise ConfigError(_NOT_HERE["evaluate"])

    def sample(self, step: int) -> None:
        """Raises ``ConfigError``: only the loop itself could do it."""
        raise ConfigError(_NOT_HERE["sample"])

    def rollback(self, step: int, target: int | str) -> int:
        """Raises ``ConfigError``: only the loop itself could do it."""
        raise ConfigError(_NOT_HERE["rollback"])

    def save(self, step: int, *, asked: bool) -> bool:
        """Let the script write its checkpoint. ``ConfigError`` without ``on_checkpoint``; ``RunError`` when that
        raised."""
        if self._on_checkpoint is None:
            raise ConfigError("checkpoint: give workbench.observe a function on_checkpoint=save, called as save(step)")
        self._enter("checkpoint")
        try:
            found = self._on_checkpoint(step)
        except Exception as error:  # the script's own: training goes on
            raise RunError(f"on_checkpoint raised {type(error).__name__}: {error}") from error
        path = str(found) if isinstance(found, str | Path) else None
        self._log.event(EventKind.CHECKPOINT, "saved_by_script", {"path": path}, step=step)
        return True
