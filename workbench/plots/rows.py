"""Rows for figures: complete steps since a cursor, time bins per rank, and thinning. Pure but for reading the store.

A figure over a long run need not hold every row: what is asked for from the start is thinned to ``BUDGET`` rows, what
comes later is sent whole.
"""

from __future__ import annotations

import math

import numpy as np

from workbench.plots.theme import MOST_LINES
from workbench.records import END_STATES
from workbench.telemetry.derive import global_metrics
from workbench.telemetry.store import Columns, Store

BUDGET = 3000
#: width of a time bin: the period of device samples at the default rate
BIN_S = 0.5

StepCursor = tuple[int, int]


def metrics_since(store: Store, cursor: StepCursor | None) -> tuple[Columns, StepCursor]:
    """Global metrics of the steps that became complete after ``cursor`` (row of the table, last step given)."""
    row, last_step = cursor or (0, 0)
    raw, end = store.since("steps", row)
    metrics = global_metrics({name: values[raw["step"] > last_step] for name, values in raw.items()}, store.mesh)
    if metrics["step"].size:
        last_step = int(metrics["step"][-1])
    waiting = np.flatnonzero(raw["step"] > last_step)
    return metrics, (end - (raw["step"].size - int(waiting[0])) if waiting.size else end, last_step)


def smooth(values: np.ndarray, before: float, weight: float = 0.2) -> np.ndarray:
    """Exponential moving average that goes on from ``before`` (NaN: starts here); NaN in ``values`` are passed over."""
    out = np.empty(values.size)
    current = before
    for index, value in enumerate(values):
        if not math.isnan(value):
            current = value if math.isnan(current) else current + weight * (value - current)
        out[index] = current
    return out


def thin(columns: Columns, budget: int = BUDGET, keep: np.ndarray | None = None) -> Columns:
    """At most about ``budget`` rows: every n-th, the last one, and those marked in ``keep``."""
    rows = len(next(iter(columns.values())))
    if rows <= budget:
        return columns
    chosen = np.zeros(rows, dtype=bool)
    chosen[:: math.ceil(rows / budget)] = True
    chosen[-1] = True
    if keep is not None:
        chosen |= keep
    return {name: values[chosen] for name, values in columns.items()}


def has_gpu(store: Store) -> bool:
    """Whether the run's ranks are bound to GPUs (false before the first device sample)."""
    devices, _ = store.since("devices", 0) if store.rows("devices") < 64 else (store.table("devices"), 0)
    return bool(devices["device"].size) and devices["device"][0] != "cpu"


def per_rank_bins(store: Store, value: str, prefix: str, last_bin: int | None, scale: float) -> tuple[Columns, int]:
    """Bins of ``BIN_S`` after ``last_bin``: column ``time`` (seconds since the first sample) and one per rank.

    Columns are ``<prefix>_<rank>`` up to ``MOST_LINES`` ranks, and ``<prefix>_lowest``, ``_median``, ``_highest`` over
    ranks above. A bin holds the mean of its samples, NaN for a rank that has none. The newest bins are kept back
    until the run has gone on for a second, so that each is given once and whole.
    """
    devices = store.table("devices")
    ranks = store.mesh.world_size
    first = -1 if last_bin is None else last_bin
    time = devices["time"]
    origin = float(time[: 8 * ranks].min()) if time.size else 0.0
    bins = ((time - origin) / BIN_S).astype(int)
    newest = int(bins.max()) - 2 if time.size and not has_ended(store) else int(bins.max(initial=-1))
    width = max(0, newest - first)
    # one bin more on either side, so that a gap is bridged alike however the log was cut into calls
    taken = (bins >= first) & (bins <= newest + 1) & (devices["rank"] < ranks)
    index = devices["rank"][taken] * (width + 2) + bins[taken] - first
    size = ranks * (width + 2)
    counts = np.bincount(index, minlength=size)
    totals = np.bincount(index, weights=devices[value][taken] * scale, minlength=size)
    with np.errstate(invalid="ignore"):
        table = (totals / counts).reshape(ranks, width + 2)
    table = _bridge(table)[:, 1:-1]
    some = ~np.isnan(table).all(axis=0)
    columns = {"time": (np.arange(first + 1, first + 1 + width)[some] + 0.5) * BIN_S, **_lines(table[:, some], prefix)}
    return columns, max(first, newest)


def has_ended(store: Store) -> bool:
    """Whether every rank logged an end of the run."""
    events = store.table("events")
    ended = (events["kind"] == "state") & np.isin(events["name"], END_STATES)
    return len(set(events["rank"][ended])) >= store.mesh.world_size


def _lines(table: np.ndarray, prefix: str) -> Columns:
    ranks = table.shape[0]
    if ranks <= MOST_LINES:
        return {f"{prefix}_{rank}": table[rank] for rank in range(ranks)}
    if table.shape[1] == 0:
        return {f"{prefix}_{name}": np.empty(0) for name in ("lowest", "median", "highest")}
    return {
        f"{prefix}_lowest": np.nanmin(table, axis=0),
        f"{prefix}_median": np.nanmedian(table, axis=0),
        f"{prefix}_highest": np.nanmax(table, axis=0),
    }


def _bridge(table: np.ndarray) -> np.ndarray:
    """Fill a gap of one bin (a sample that fell just over a border) with the mean of its neighbours."""
    gap = np.isnan(table[:, 1:-1])
    between = (table[:, :-2] + table[:, 2:]) / 2
    out = table.copy()
    out[:, 1:-1][gap] = between[gap]
    return out
