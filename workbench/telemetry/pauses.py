"""When a run was paused, from its events: time that counts neither as elapsed nor as the pace of its steps."""

from __future__ import annotations

import math

import numpy as np

from workbench.core.columns import Columns
from workbench.core.records import EventKind


class Pauses:
    """The pauses of the lowest rank that logged a state. ``take`` rows of the ``events`` table as they come; times are
    seconds since the epoch. A pause lasts until the rank's next state."""

    def __init__(self) -> None:
        self._rank: int | None = None
        self._begins: list[float] = []
        self._ends: list[float] = []

    def take(self, events: Columns) -> Pauses:
        """Add new rows, in the order in which the rank wrote them."""
        states = (events["kind"] == EventKind.STATE) & (events["rank"] >= 0)
        if self._rank is None and states.any():
            self._rank = int(events["rank"][states].min())
        for row in np.flatnonzero(states & (events["rank"] == self._rank)):
            is_open = len(self._begins) > len(self._ends)
            if (events["name"][row] == "paused") != is_open:
                (self._ends if is_open else self._begins).append(float(events["time"][row]))
        return self

    def before(self, times: float | np.ndarray) -> np.ndarray:
        """Seconds of pauses before each of ``times``."""
        ends = [*self._ends, math.inf][: len(self._begins)]
        out = np.zeros(np.shape(times))
        for begin, end in zip(self._begins, ends, strict=True):
            out = out + np.clip(np.asarray(times, dtype=float), begin, end) - begin
        return out
