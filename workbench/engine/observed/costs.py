"""What observing a step costs: in threads beside the loop, and in the loop."""

from __future__ import annotations

import time
from collections.abc import Sequence

from workbench.engine.base.observer import StepObserver
from workbench.engine.watch.host.sampler import Progress
from workbench.rundir.log import RankLogWriter


class Costs:
    """``with costs:`` counts what runs inside as cost in the loop."""

    def __init__(self, log: RankLogWriter, progress: Progress) -> None:
        self._log = log
        self._progress = progress
        self._spent_s = 0.0
        self._told = (log.cost_s + progress.sampling_s, 0.0)

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self._spent_s += time.perf_counter() - self._began

    def take(self, hooks_s: float, observers: Sequence[StepObserver]) -> float:
        """Milliseconds since the last call. ``hooks_s``: seconds that hooks have taken so far; what observers cost is
        within that, where it is no cost of a device."""
        threads_s, own_s = self._log.cost_s + self._progress.sampling_s, self._spent_s + hooks_s
        in_threads_s, in_loop_s = threads_s - self._told[0], own_s - self._told[1]
        self._told = (threads_s, own_s)
        return in_threads_s * 1e3 + max(in_loop_s * 1e3, sum(observer.cost_ms for observer in observers))
