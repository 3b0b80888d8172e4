"""The panel's verdict on a run: what takes the step time, which rank is a straggler, and how well devices are used."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.core.columns import Columns
from workbench.telemetry import row_views as rows
from workbench.telemetry.flops import Cost, cost_of, mfu_percent
from workbench.telemetry.phases import posting_time
from workbench.telemetry.store import Store
from workbench.telemetry.stragglers import own_work_by_rank
from workbench.telemetry.verdict import RECORDED, WARM_UP, verdict

STEPS = 20
_COLUMNS = ("step", "rank", "phase", "micro_batch", "start_ms", "duration_ms")


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
    """Reads new phases and collectives from a store; ``judge`` covers the newest ``STEPS`` steps that have phases."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cursor: Any = None
        self._kept: Columns | None = None
        self._calls_cursor: Any = None
        self._posted: pd.Series | None = None
        self._cost = Cost()
        self._judged = SpeedVerdict()

    def judge(self, tokens_per_second: float | None) -> SpeedVerdict:
        """Return the current verdict. ``tokens_per_second``: the total of all ranks; None: unknown."""
        phases, self._cursor = rows.whole_steps(self._store, "phases", self._cursor)
        if phases["step"].size:
            kept = self._kept
            joined = {n: np.concatenate([kept[n], phases[n]]) if kept else phases[n] for n in _COLUMNS}
            taken = joined["step"] >= np.unique(joined["step"])[-STEPS - WARM_UP :][0]
            self._kept = {name: values[taken] for name, values in joined.items()}
        posted = self._read_collectives()
        if self._kept is not None and (posted or phases["step"].size):
            found = verdict(self._kept, self._store.mesh, self._posted, window=STEPS)
            straggler = None if found.straggler is None else found.straggler.rank
            self._judged = SpeedVerdict(found.sentence, straggler, self._lag(self._kept))
        return replace(self._judged, mfu=self._mfu(tokens_per_second))

    def _read_collectives(self) -> bool:
        """Read new collectives. Returns whether there were any."""
        calls, self._calls_cursor = rows.whole_steps(self._store, "collectives", self._calls_cursor)
        if not calls["step"].size:
            return False
        posted = posting_time(calls)
        joined = posted if self._posted is None else pd.concat([self._posted, posted])
        steps = joined.index.get_level_values("step")
        self._posted = joined[steps >= np.unique(steps)[-RECORDED:][0]] if len(joined) else joined
        return True

    def _mfu(self, tokens_per_second: float | None) -> float | None:
        ranks = self._store.mesh.world_size
        if not math.isfinite(self._cost.peak):
            self._cost = cost_of(self._store.table("events"), ranks)
        if tokens_per_second is None:
            return None
        share = float(mfu_percent(tokens_per_second / ranks, self._cost, ranks)) / 100
        return share if math.isfinite(share) else None

    def _lag(self, phases: Columns) -> np.ndarray:
        return own_work_by_rank(phases, self._store.mesh)
