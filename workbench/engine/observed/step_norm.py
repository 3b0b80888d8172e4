"""The norm of the whole gradient in a loop that is not ours: as the script clips by, else within the budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from workbench.core.config import MonitorSpec
from workbench.core.controls import AUTOMATIC
from workbench.engine.base.observer import StepObserver
from workbench.engine.observed.model import ObservedModel
from workbench.engine.watch.host.governor import Account
from workbench.engine.watch.torch.host_copy import Stopwatch

#: of the number agreed between ranks: whether the norm of the next step is computed (the bits below are others')
BIT = 1 << 25
#: share of the monitor's budget that pays for norms
SHARE = 0.2


class StepNorm(StepObserver):
    """``squared``: this rank's share of the squared norm of the reduced gradient, before clipping.

    A script that clips by the norm computes it at every step, and then nothing is paid for it. Otherwise it is computed
    at the first step and, with ``grad_every``, at every ``grad_every``-th; else rank 0 chooses the steps so that it
    costs at most its share of the budget.
    """

    def __init__(self, monitor: MonitorSpec, model: ObservedModel) -> None:
        self._model = model
        self._every = monitor.grad_every
        self._earned = SHARE * monitor.budget
        self._account = Account(1.0)
        self._cost = Stopwatch(model.device)
        self._is_first = True
        self._is_due = False
        self._clipped_by: torch.Tensor | None = None

    def settings(self) -> dict[str, Any]:
        return {"grad_every": AUTOMATIC if self._every is None else self._every}

    def set(self, name: str, value: Any) -> None:
        if name == "grad_every":
            self._every = None if value == AUTOMATIC else value

    def propose(self, step: int) -> int:
        return BIT if self._every is None and self._account.can_afford_another(int(self._is_due)) else 0

    def begins(self, step: int, watch: int) -> None:
        self._clipped_by = None
        if self._every is None:
            self._is_due = self._is_first or bool(watch & BIT)
        else:
            self._is_due = bool(self._every) and (self._is_first or step % self._every == 0)
        self._is_first = False
        self._began = time.perf_counter()

    def clips(self, parameters: Sequence[torch.Tensor], norm: torch.Tensor | None) -> None:
        """The script clips the gradients of ``parameters`` by ``norm``, their L2 norm (None: not known)."""
        if norm is not None and self._model.are_all(parameters):
            self._clipped_by = norm.detach()

    def reduced(self, step: int) -> None:
        if self._is_due:
            with self._cost:
                self._model.grad_sq()

    def squared(self) -> torch.Tensor | None:
        """Of this step; None where it is not known."""
        if self._clipped_by is not None:
            return self._clipped_by.double().square() * (self._model.rank == 0)
        return self._model.grad_sq() if self._is_due else None

    def ends(self, step: int) -> None:
        self.cost_ms = self._cost.take()

    def accounted(self, step: int, cost_ms: float) -> None:
        self._account.earn((time.perf_counter() - self._began) * 1e3 * self._earned)
        if self._is_due:
            self._account.pay(self.cost_ms)
