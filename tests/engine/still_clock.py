"""A clock of ranks that a busy machine does not disturb."""

from __future__ import annotations

import threading


class StillClock:
    """Stands for ``time.perf_counter`` of a rank: each reading is ``TICK_S`` later than the one before, and sleeping
    moves it on. What else the machine does takes no time of it."""

    TICK_S = 1e-4

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        self.sleep(self.TICK_S)
        return self._now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds
