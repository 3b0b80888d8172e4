"""Which steps' gradients are watched, and their way into the log."""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from workbench.config import MonitorSpec
from workbench.controls import AUTOMATIC
from workbench.engine.gradients import GradientCollector
from workbench.engine.observer import StepObserver
from workbench.engine.strategies.base import Strategy
from workbench.rank_log import RankLogWriter

#: steps between gradient statistics where nobody said how many
DEFAULT_EVERY = 20


class GradientWatch(StepObserver):
    """Logs gradient statistics of the steps that are due: the first, and every ``grad_every``-th."""

    def __init__(self, spec: MonitorSpec, strategy: Strategy, log: RankLogWriter) -> None:
        self._every = DEFAULT_EVERY if spec.grad_every is None else spec.grad_every
        self._strategy = strategy
        self._log = log
        self._collector = GradientCollector()
        self._due = False
        self._automatic = spec.grad_every is None
        self._layers = spec.grad_layers

    def settings(self) -> dict[str, Any]:
        return {"grad_every": AUTOMATIC if self._automatic else self._every, "grad_layers": self._layers}

    def set(self, name: str, value: Any) -> None:
        if name == "grad_every":
            self._automatic = value == AUTOMATIC
            self._every = DEFAULT_EVERY if self._automatic else value
        elif name == "grad_layers":
            self._layers = value

    def begins(self, step: int, watch: int) -> None:
        self.cost_ms = 0.0
        self._due = self._every > 0 and (step == 1 or step % self._every == 0)

    def around(self, step: int) -> AbstractContextManager[None]:
        return self._strategy.watch_local(self._collector.observe) if self._due else nullcontext()

    def reduced(self, step: int) -> None:
        if not self._due:
            return
        began = time.perf_counter()
        self._write(step, "local")
        self._collector.add_all(self._strategy.reduced_gradients())
        self._write(step, "reduced")
        self.cost_ms += (time.perf_counter() - began) * 1e3

    def _write(self, step: int, scope: str) -> None:
        for record in self._collector.records(step, self._strategy.rank, scope):
            if re.search(self._layers, record.layer):
                self._log.append(record)
