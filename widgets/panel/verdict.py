"""The panel's verdict on a run: what takes the step time, which rank is a straggler, and how well devices are used."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from workbench.telemetry.flops import Cost, cost_of, mfu_percent
from workbench.telemetry.judged import hold
from workbench.telemetry.store import Store
from workbench.telemetry.stragglers import own_work_by_rank


@dataclass(frozen=True)
class SpeedVerdict:
    """The verdict on the newest steps.

    ``sentence``: the verdict in words; "" while there are no phases. ``straggler``: a rank, or None. ``lag``: each
    rank's own work time relative to the median (0.1: 10 % more), or None when unknown. ``mfu``: model FLOPS utilisation
    as a share of the peak, or None when unknown.
    """

    sentence: str = ""
    straggler: int | None = None
    lag: np.ndarray | None = None
    mfu: float | None = None


class VerdictTracker:
    """Judges a store's newest steps (``telemetry.judged``) for the tiles, the figures and the sentence alike."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cost = Cost()
        self._judged = SpeedVerdict()

    def judge(self, tokens_per_second: float | None) -> SpeedVerdict:
        """Return the current verdict. ``tokens_per_second``: the total of all ranks; None: unknown."""
        found = hold(self._store)
        if found.verdict is not None:
            lag = own_work_by_rank(found.phases, self._store.mesh)
            self._judged = SpeedVerdict(found.verdict.sentence, found.slow_rank, lag)
        return replace(self._judged, mfu=self._mfu(tokens_per_second))

    def _mfu(self, tokens_per_second: float | None) -> float | None:
        ranks = self._store.mesh.world_size
        if not math.isfinite(self._cost.peak):
            self._cost = cost_of(self._store.table("events"), ranks)
        if tokens_per_second is None:
            return None
        share = float(mfu_percent(tokens_per_second / ranks, self._cost, ranks)) / 100
        return share if math.isfinite(share) else None
