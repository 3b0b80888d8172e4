"""What a run's figures come to, in a sentence: where the step time goes, who is slow, how well the device is used."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.plots import rows
from workbench.plots.lag import OWN_WORK, STRAGGLER, against_median
from workbench.plots.phase_bars import mean_by_phase
from workbench.telemetry.store import Columns, Store

STEPS = 20
_WAITS = {"communication": "exposed communication", "bubble": "pipeline bubbles", "data": "waiting for data"}


@dataclass(frozen=True)
class Judgement:
    """``sentence`` for people ("": nothing is known yet), ``straggler`` (rank or None), ``lag`` (each rank's own work
    against the median, 0.1: 10 % more; None: unknown), ``mfu`` (share of the peak, None: unknown)."""

    sentence: str = ""
    straggler: int | None = None
    lag: np.ndarray | None = None
    mfu: float | None = None


class Judge:
    """Reads phases on from where it stood; ``judge`` is about the newest ``STEPS`` steps that have any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cursor: Any = None
        self._kept: Columns | None = None
        self._events = 0
        self._peak: float | None = None
        self._parameters: float | None = None

    def judge(self, tokens_per_second: float | None) -> Judgement:
        """``tokens_per_second``: of all ranks together."""
        phases, self._cursor = rows.whole_steps(self._store, "phases", self._cursor)
        if phases["step"].size:
            names = ("step", "rank", "phase", "duration_ms")
            kept = self._kept
            joined = {n: np.concatenate([kept[n], phases[n]]) if kept else phases[n] for n in names}
            taken = joined["step"] >= np.unique(joined["step"])[-STEPS:][0]
            self._kept = {name: values[taken] for name, values in joined.items()}
        mfu = self._mfu(tokens_per_second)
        if self._kept is None:
            return Judgement(mfu=mfu)
        sentence, straggler, lag = sum_up(self._kept, self._store)
        return Judgement(sentence, straggler, lag, mfu)

    def _mfu(self, tokens_per_second: float | None) -> float | None:
        """Six operations per parameter and token (Kaplan et al. 2020, table 1) against the device's peak."""
        events, self._events = rows.since(self._store, "events", self._events)
        for index in np.flatnonzero((events["kind"] == "peak") & (events["name"] == "flops")):
            self._peak = _first_number(json.loads(events["value"][index]))
        if self._peak is None or tokens_per_second is None:
            return None
        if self._parameters is None and self._store.rows("weights"):
            self._parameters = parameters(self._store)
        if not self._parameters:
            return None
        return 6 * self._parameters * tokens_per_second / (self._peak * self._store.mesh.world_size)


def sum_up(phases: Columns, store: Store) -> tuple[str, int | None, np.ndarray]:
    """The sentence, the straggler and each rank's lag, from phases of some steps."""
    names, table = mean_by_phase(phases, store.mesh.world_size)
    mean = dict(zip(names, table.mean(axis=0), strict=True))
    total = sum(value for name, value in mean.items() if name not in ("overlapped", "monitor", "paused"))
    own = table[:, [place for place, name in enumerate(names) if name in OWN_WORK]].sum(axis=1)
    lag = against_median(own[:, None], store)[:, 0]
    if total <= 0:
        return "", None, lag
    compute = sum(mean.get(name, 0.0) for name in ("forward", "backward", "optimizer")) / total
    waits = [(mean.get(name, 0.0) / total, label) for name, label in _WAITS.items() if mean.get(name, 0.0) > 0]
    waits.sort(reverse=True)
    parts = [f"{100 * share:.0f} % {label}" for share, label in waits if share >= 0.01]
    sentence = f"Of the step, {100 * compute:.0f} % is compute" + (f", {', '.join(parts)}." if parts else ".")
    straggler = int(np.nanargmax(lag)) if lag.size > 1 and np.isfinite(lag).any() else None
    if straggler is None or not lag[straggler] > STRAGGLER:
        return sentence + (" No rank lags behind." if lag.size > 1 else ""), None, lag
    return (
        f"{sentence} Rank {straggler} is the slowest: {100 * lag[straggler]:.0f} % more work than the median.",
        straggler,
        lag,
    )


def parameters(store: Store) -> float:
    """How many parameters the model has, each once, from the first weight statistics that all ranks logged."""
    weights = store.table("weights")
    count: dict[tuple[str, int, int], int] = {}
    for index in np.flatnonzero(weights["step"] == weights["step"].min()):
        here = store.mesh.coordinates(int(weights["rank"][index]))
        split = str(weights["sharded"][index]).split("+")
        key = (str(weights["layer"][index]), here.tp if "tp" in split else 0, here.dp if "dp" in split else 0)
        count[key] = int(weights["numel"][index])
    return float(sum(count.values()))


def _first_number(value: Any) -> float | None:
    values = value.values() if isinstance(value, dict) else [value]
    numbers = [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return next((number for number in numbers if math.isfinite(number) and number > 0), None)
