"""The rows of steps in the log: written at once, or a step later where reading a loss would wait for the device."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from workbench.core.records import EventKind, StepRecord
from workbench.rundir.log import RankLogWriter


@dataclass(slots=True)
class Measured:
    """A finished step whose loss and squared norm (scalars of the framework; None: it has none) may still be on their
    way to the host."""

    step: int
    loss: Any
    grad_sq: Any
    lr: float
    tokens: int
    step_time_ms: float
    data_wait_ms: float
    skipped: bool
    loss_scale: float
    clip: float
    framework_norm: float
    monitor_ms: float

    def record(self, rank: int) -> StepRecord:
        """The row of the log."""
        return StepRecord(
            time=time.time(),
            step=self.step,
            rank=rank,
            loss=math.nan if self.loss is None else float(self.loss),
            lr=self.lr,
            grad_sq=math.nan if self.grad_sq is None else float(self.grad_sq),
            tokens=self.tokens,
            step_time_ms=self.step_time_ms,
            data_wait_ms=self.data_wait_ms,
            skipped=self.skipped,
            loss_scale=self.loss_scale,
            clip=self.clip,
            framework_norm=self.framework_norm,
            monitor_ms=self.monitor_ms,
        )


class StepRows:
    """Writes the rows of ``rank``. ``on_host``: a step is written at once; otherwise the next one, or ``flush``, writes
    it. ``has_loss``: this rank has losses."""

    def __init__(self, log: RankLogWriter, rank: int, *, on_host: bool, has_loss: bool) -> None:
        self._log = log
        self._rank = rank
        self._on_host = on_host
        self._has_loss = has_loss
        self._in_flight: Measured | None = None
        self._unlogged: StepRecord | None = None
        self._warned = False

    def add(self, measured: Measured, log_every: int) -> None:
        """Take a finished step, and write what can be written now."""
        self._in_flight = measured
        if self._on_host:
            self.flush(log_every)

    def flush(self, log_every: int) -> None:
        """Write the step that waits, if it is due."""
        if self._in_flight is None:
            return
        record = self._in_flight.record(self._rank)
        self._in_flight = None
        if record.step % log_every == 0:
            self._unlogged = None
            self._log.append(record)
        else:
            self._unlogged = record
        if self._has_loss and not self._warned and not math.isfinite(record.loss):
            self._warned = True
            self._log.event(EventKind.WARNING, "nonfinite_loss", str(record.loss), step=record.step)

    def forget(self) -> None:
        """A rollback took the last steps back."""
        self._unlogged = None

    def end(self, log_every: int) -> None:
        """Write the last step, whether it is due or not."""
        self.flush(log_every)
        if self._unlogged is not None:
            self._log.append(self._unlogged)
