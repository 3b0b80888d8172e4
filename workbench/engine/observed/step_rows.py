"""Rows of the table of steps, written when the numbers of a step have arrived on the host."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from workbench.core.records import StepRecord
from workbench.engine.loop.settings import Settings
from workbench.rundir.log import RankLogWriter


class StepRows:
    """``keep`` the numbers of a step and ``write`` them: on a GPU they have arrived by the next step. ``tell(name,
    text)`` is told of a loss that is not finite."""

    def __init__(self, log: RankLogWriter, settings: Settings, tell: Callable[[str, str], object]) -> None:
        self._log = log
        self._settings = settings
        self._tell = tell
        self._kept: tuple[dict[str, Any], Any, Any] | None = None

    def keep(self, values: dict[str, Any], loss: Any, grad_sq: Any) -> None:
        """``values``: those of ``StepRecord`` but ``loss`` and ``grad_sq``, which may be on a device (None: not
        known)."""
        self._kept = (values, loss, grad_sq)

    def write(self) -> None:
        """Write what was kept, if that was not done."""
        if self._kept is None:
            return
        (values, loss, grad_sq), self._kept = self._kept, None
        record = StepRecord(**values, loss=float(loss), grad_sq=math.nan if grad_sq is None else float(grad_sq))
        if record.step % self._settings.log_every == 0:
            self._log.append(record)
        if not math.isfinite(record.loss):
            self._tell("nonfinite_loss", str(record.loss))
