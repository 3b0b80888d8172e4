"""Rows for figures: news of whole steps, time bins per rank, and thinning. Pure but for reading the store.

A figure over a long run need not hold every row: what is asked for from the start is thinned to ``BUDGET`` rows, what
comes later is sent whole. Figures of one tick read the same news: what was read once is kept for the next that asks.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from workbench.core.columns import Columns
from workbench.core.records import EventKind
from workbench.events.decode import as_number, of_kind
from workbench.telemetry.derive import batch_of, global_metrics
from workbench.telemetry.gradients import combine_columns
from workbench.telemetry.layer_norms import LayerLists, with_norms
from workbench.telemetry.pauses import Pauses
from workbench.telemetry.rollbacks import validated
from workbench.telemetry.store import Store
from workbench.telemetry.thin import minmax_indices

BUDGET = 2000
#: cells of a heat map that a browser redraws twice a second without effort
CELLS = 6_000
#: rows of a heat map over ranks; more ranks share rows
MOST_ROWS = 128
#: width of a time bin: the period of device samples at the default rate
BIN_S = 0.5
#: bins without samples that break a line
GAP_BINS = 20
#: ranks up to which a figure has a line for each; above, it shows the lowest, the median and the highest
MOST_LINES = 32
_KEPT = 48
#: norms of single layers that figures are made of at a time
_MOST_NORMS = 200_000

StepCursor = tuple[int, int]

_memory: WeakKeyDictionary[Store, OrderedDict[Any, Any]] = WeakKeyDictionary()
_progress: WeakKeyDictionary[Store, _Progress] = WeakKeyDictionary()


def memo(store: Store, key: Any, compute: Callable[[], Any]) -> Any:
    """``compute()``, or what it gave last time for the same key (which names the rows it is made of)."""
    kept = _memory.setdefault(store, OrderedDict())
    key = (len(store.rollbacks.known), *key)
    if key not in kept:
        kept[key] = compute()
        if len(kept) > _KEPT:
            kept.popitem(last=False)
    return kept[key]


def since(store: Store, table: str, cursor: int) -> tuple[Columns, int]:
    """``Store.since``, read once for all figures with the same cursor. Not to be written to."""
    end = store.rows(table)
    return memo(store, ("since", table, cursor, end), lambda: store.since(table, cursor)[0]), end


class _Progress:
    """How far each rank is, and which have ended: read on from where it stood."""

    def __init__(self, ranks: int, absent: frozenset[int]) -> None:
        self._absent = absent
        self.furthest = np.zeros(ranks, dtype=int)
        self.ended: set[int] = set(absent)
        self.begin = math.nan  # time of the first device samples
        self.unit = ""  # what throughput counts
        self._steps = self._events = 0
        self._rollbacks = -1

    def update(self, store: Store) -> _Progress:
        if len(store.rollbacks.known) != self._rollbacks:
            self._rollbacks, self._steps = len(store.rollbacks.known), 0
            self.furthest[:] = 0
            self.furthest[sorted(self._absent)] = 2**62
        if store.rows("steps") != self._steps:
            steps, self._steps = since(store, "steps", self._steps)
            known = steps["rank"] < self.furthest.size
            np.maximum.at(self.furthest, steps["rank"][known], steps["step"][known])
        if store.rows("events") != self._events:
            events, self._events = since(store, "events", self._events)
            over = (events["kind"] == EventKind.STATE) & np.isin(events["name"], ("finished", "stopped", "failed"))
            self.ended |= {int(rank) for rank in events["rank"][over]}
            if not self.unit and (events["kind"] == EventKind.DATA).any():
                self.unit = batch_of(events)[1]
        if math.isnan(self.begin) and store.rows("devices"):
            first, _ = store.since("devices", 0)
            self.begin = float(first["time"][: 8 * self.furthest.size].min())
        return self


def progress(store: Store) -> _Progress:
    """The store's progress, up to date."""
    if store not in _progress:
        _progress[store] = _Progress(store.mesh.world_size, store.absent)
    return _progress[store].update(store)


def unit(store: Store) -> str:
    """What the run's throughput counts: "tokens" or "samples"; tokens before the first batch."""
    return progress(store).unit or "tokens"


def told_since(store: Store, cursor: int) -> tuple[Columns, int]:
    """``since`` of events, without those that tell of steps that a rollback took back."""
    events, end = since(store, "events", cursor)
    stands = store.rollbacks.stand(events)
    return (events if stands.all() else {name: values[stands] for name, values in events.items()}), end


def has_ended(store: Store) -> bool:
    """Whether every rank logged an end of the run."""
    return len(progress(store).ended) >= store.mesh.world_size


def metrics_since(store: Store, cursor: StepCursor | None) -> tuple[Columns, StepCursor]:
    """Global metrics of the steps that became complete after ``cursor`` (row of the table, last step given)."""
    row, last_step = cursor or (0, 0)
    return memo(store, ("metrics", row, last_step, store.rows("steps")), lambda: _metrics(store, row, last_step))


def _metrics(store: Store, row: int, last_step: int) -> tuple[Columns, StepCursor]:
    raw, end = since(store, "steps", row)
    later = {name: values[raw["step"] > last_step] for name, values in raw.items()}
    metrics = global_metrics(later, store.mesh, len(store.absent))
    if metrics["step"].size:
        last_step = int(metrics["step"][-1])
    waiting = np.flatnonzero(raw["step"] > last_step)
    return metrics, (end - (raw["step"].size - int(waiting[0])) if waiting.size else end, last_step)


def whole_steps(store: Store, table: str, cursor: StepCursor | None) -> tuple[Columns, StepCursor]:
    """Rows of a table with a column ``step``, of the steps after ``cursor`` that no rank will add to any more.

    A step is whole when every rank is two steps further, or the run has ended. Counting ranks would not do: not each
    of them has rows of each table.
    """
    row, last_step = cursor or (0, 0)
    limit = 2**62 if has_ended(store) else last_whole_step(store)
    key = ("whole", table, row, last_step, store.rows(table), limit)
    return memo(store, key, lambda: _whole(store, table, row, last_step, limit))


def last_whole_step(store: Store) -> int:
    """The last step that is whole as ``whole_steps`` means it; 2**62 where every rank is absent."""
    furthest = int(progress(store).furthest.min(initial=2**62))
    return furthest if has_ended(store) else furthest - 2


#: where statistics of whole layers were read: in ``gradients``, and in ``layer_norms``
GradientCursor = tuple[StepCursor, StepCursor]


def combined(store: Store, cursor: GradientCursor | None) -> tuple[Columns, Columns, GradientCursor]:
    """``telemetry.gradients.combine_columns`` of the whole steps after the cursor, the rows that it is made of, and the
    new cursor. Of very many steps with norms alone some are left out."""
    of_sets, of_norms = cursor or (None, None)
    sets, after_sets = whole_steps(store, "gradients", of_sets)
    norms, after_norms = whole_steps(store, "layer_norms", of_norms)
    after = (after_sets, after_norms)

    def rows() -> Columns:
        return with_norms(sets, _fewer(norms), _layer_lists(store), store.mesh)

    raw = memo(store, ("gradient rows", cursor, after), rows)
    return memo(store, ("combined", cursor, after), lambda: combine_columns(raw, store.mesh)), raw, after


def _layer_lists(store: Store) -> LayerLists:
    """What the rows of ``layer_norms`` are of; read again when there are new events."""
    return memo(store, ("layer lists", store.rows("events")), lambda: LayerLists().read(store.table("events")))


def _fewer(norms: Columns) -> Columns:
    """Every n-th step of ``layer_norms``, so that no more than ``_MOST_NORMS`` norms remain."""
    count = sum(map(len, norms["norms"]))
    if count <= _MOST_NORMS:
        return norms
    kept = norms["step"] % math.ceil(count / _MOST_NORMS) == 0
    return {name: values[kept] for name, values in norms.items()}


def _whole(store: Store, table: str, row: int, last_step: int, limit: int) -> tuple[Columns, StepCursor]:
    raw, end = since(store, table, row)
    step = raw["step"]
    taken = (step > last_step) & (step <= limit)
    waiting = np.flatnonzero(step > limit)
    out = raw if taken.all() else {name: values[taken] for name, values in raw.items()}
    last_step = int(step[taken].max()) if taken.any() else last_step
    return out, (row + int(waiting[0]) if waiting.size else end, last_step)


def begins(*columns: np.ndarray) -> np.ndarray:
    """A mask of the rows that differ from the row before in one of the columns: the first of each run of equal ones."""
    mask = np.ones(columns[0].size, dtype=bool)
    mask[1:] = np.logical_or.reduce([values[1:] != values[:-1] for values in columns])
    return mask


def smooth(values: np.ndarray, before: float, weight: float = 0.2) -> np.ndarray:
    """Exponential moving average that goes on from ``before`` (NaN: starts here); NaN in ``values`` are passed over."""
    out = np.empty(values.size)
    current = before
    for index, value in enumerate(values):
        if not math.isnan(value):
            current = value if math.isnan(current) else current + weight * (value - current)
        out[index] = current
    return out


Marks = list[tuple[float, float]]


def spikes(events: Columns, name: str) -> Marks:
    """Step and value of the spikes of "loss" or "grad_norm" among rows of the ``events`` table."""
    found = ((e.step, as_number(e.fields.get("value"))) for e in of_kind(events, EventKind.SPIKE, name))
    return [(float(step), value) for step, value in found if not math.isnan(value)]


def validations(events: Columns, name: str) -> Marks:
    """Step and value of the validations of that name, those that are numbers, among rows of the ``events`` table,
    without those that a rollback among them took back."""
    found = ((event.step, as_number(event.value)) for event in validated(events, name))
    return [(float(step), value) for step, value in found if not math.isnan(value)]


def marked(step: np.ndarray, marks: Marks) -> tuple[np.ndarray, np.ndarray, Marks]:
    """Marks (step, value) beside the rows of ``step``: columns of where and what, NaN where there is none, and those
    that wait for rows to come. A mark is on the row of its step or, where it comes too late, on a later one."""
    where, what, free = np.full(step.size, math.nan), np.full(step.size, math.nan), 0
    for place, (at, value) in enumerate(marks):
        row = max(free, int(np.searchsorted(step, at)))
        if row >= step.size:
            return where, what, marks[place:]
        where[row], what[row], free = at, value, row + 1
    return where, what, []


def thin(
    columns: Columns, budget: int = BUDGET, keep: np.ndarray | None = None, of: Sequence[str] | None = None
) -> Columns:
    """At most ``budget`` rows that draw the same lines, and those marked in ``keep``.

    The first column is the x axis, ascending. Per pixel (a fraction of ``budget``) the lowest and the highest value of
    each column in ``of`` stay, the first and the last row too; ``of``: by default all but x, and the envelope of more
    than three.
    """
    x, *others = columns
    if columns[x].size <= budget:
        return columns
    lines = [columns[name] for name in (others if of is None else of)]
    if len(lines) > 3:
        table = np.stack(lines)
        lines = [np.fmin.reduce(table), np.fmax.reduce(table)]
    pixels = max(1, (budget - 2) // (3 * max(1, len(lines))))
    chosen = np.zeros(columns[x].size, dtype=bool) if keep is None else keep.copy()
    for y in lines or [columns[x]]:
        chosen[minmax_indices(columns[x], y, pixels)] = True
    return {name: values[chosen] for name, values in columns.items()}


def has_gpu(store: Store) -> bool:
    """Whether the run's ranks are bound to GPUs (false before the first device sample)."""
    if not store.rows("devices"):
        return False
    device = memo(store, ("device",), lambda: str(store.since("devices", 0)[0]["device"][0]))
    return bool(device != "cpu")


def rank_groups(ranks: int, rows: int = MOST_ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Ranks that share a row of a heat map: the row of each rank, and the first rank of each row."""
    size = math.ceil(ranks / rows)
    return np.arange(ranks) // size, np.arange(0, ranks, size)


def rank_label(first: int, ranks: int, rows: int = MOST_ROWS) -> str:
    """For people: which ranks a row stands for."""
    size = math.ceil(ranks / rows)
    return f"{first}" if size == 1 else f"{first}-{min(ranks, first + size) - 1}"


BinCursor = tuple[int, int, int]


def rank_bins(store: Store, value: str, cursor: BinCursor | None) -> tuple[np.ndarray, np.ndarray, BinCursor]:
    """Device samples in bins of ``BIN_S``: bin numbers after the cursor, a table (rank, bin) of means, the new cursor.

    NaN for a rank without samples there; a gap of one bin is bridged. One bin without any sample stands for a pause,
    and for a time of more than ``GAP_BINS`` without samples, so that a line is broken there. The cursor is (row, last
    bin read, last bin with samples). The newest bins are kept back until the run has gone on for a second, so that
    each is given once and whole.
    """
    row, last, seen = cursor or (0, -1, -1)
    key = ("bins", value, row, last, seen, store.rows("devices"), has_ended(store))
    return memo(store, key, lambda: _bins(store, value, row, last, seen))


def _bins(store: Store, value: str, row: int, last: int, seen: int) -> tuple[np.ndarray, np.ndarray, BinCursor]:
    devices, end = since(store, "devices", row)
    here = progress(store)
    ranks = store.mesh.world_size
    if not devices["time"].size:
        return np.empty(0, dtype=int), np.empty((ranks, 0)), (row, last, seen)
    bins = ((devices["time"] - here.begin) / BIN_S).astype(int)
    newest = int(bins.max()) - (0 if has_ended(store) else 2)
    width = max(0, newest - last)
    # one bin more on either side, so that a gap is bridged alike however the log was cut into calls
    taken = (bins >= last) & (bins <= newest + 1) & (devices["rank"] < ranks)
    index = devices["rank"][taken] * (width + 2) + bins[taken] - last
    size = ranks * (width + 2)
    counts = np.bincount(index, minlength=size)
    totals = np.bincount(index, weights=devices[value][taken], minlength=size)
    with np.errstate(invalid="ignore"):
        table = _bridge((totals / counts).reshape(ranks, width + 2))[:, 1:-1]
    numbers = np.arange(last + 1, last + 1 + width)
    paused = _paused(store, here.begin + np.append(last, numbers) * BIN_S)
    table[:, paused[1:]] = math.nan
    some = ~np.isnan(table).all(axis=0)
    # how many bins ago there was a sample
    empty = numbers - np.maximum.accumulate(np.where(some, numbers, seen)) if width else numbers
    shown = some | (paused[1:] & ~paused[:-1]) | ((empty == GAP_BINS + 1) & (empty < numbers + 1))
    needed = np.flatnonzero(bins >= max(last, newest))
    cursor = (row + int(needed[0]) if needed.size else end, max(last, newest), int(numbers[some].max(initial=seen)))
    return numbers[shown], table[:, shown], cursor


def _paused(store: Store, begin: np.ndarray) -> np.ndarray:
    """Which bins, from ``begin`` (epoch seconds) on, lie within a pause for more than half of their length."""
    pauses = memo(store, ("pauses", store.rows("events")), lambda: Pauses().take(store.table("events")))
    return np.asarray(pauses.before(begin + BIN_S) - pauses.before(begin) > BIN_S / 2)


def per_rank_bins(
    store: Store, value: str, prefix: str, cursor: BinCursor | None, *, scale: float = 1.0, chosen: int | None = None
) -> tuple[Columns, BinCursor]:
    """``rank_bins`` as columns: ``time`` (seconds since the first sample) and one per rank.

    Columns are ``<prefix>_<rank>`` up to ``MOST_LINES`` ranks, and ``<prefix>_lowest``, ``_median``, ``_highest`` over
    ranks above, with ``_chosen`` for the one that is looked at (NaN without).
    """
    bins, table, after = rank_bins(store, value, cursor)
    return {"time": (bins + 0.5) * BIN_S, **lines(table * scale, prefix, chosen)}, after


def lines(table: np.ndarray, prefix: str, chosen: int | None = None, *, band: bool | None = None) -> Columns:
    """A table (rank, place) as columns of lines, or of a band (None: above ``MOST_LINES`` ranks)."""
    ranks = table.shape[0]
    if not (ranks > MOST_LINES if band is None else band):
        return {f"{prefix}_{rank}": table[rank] for rank in range(ranks)}
    names = ("lowest", "median", "highest")
    if table.shape[1] == 0:
        return {f"{prefix}_{name}": np.empty(0) for name in (*names, "chosen")}
    is_gap = np.isnan(table).all(axis=0)
    parts = np.nanquantile(np.where(is_gap, 0.0, table), (0.0, 0.5, 1.0), axis=0)
    parts[:, is_gap] = math.nan
    own = np.full(table.shape[1], math.nan) if chosen is None or chosen >= ranks else table[chosen]
    return {**{f"{prefix}_{name}": part for name, part in zip(names, parts, strict=True)}, f"{prefix}_chosen": own}


def table_of(step: np.ndarray, rank: np.ndarray, value: np.ndarray, ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums per (rank, step): the steps, ascending, and a table with NaN where a rank has no row."""
    steps, place = np.unique(step, return_inverse=True)
    index = rank * steps.size + place
    counts = np.bincount(index, minlength=ranks * steps.size)
    sums = np.bincount(index, weights=value, minlength=ranks * steps.size)
    return steps, np.where(counts > 0, sums, math.nan).reshape(ranks, steps.size)


def spacing(steps: np.ndarray, before: float) -> np.ndarray:
    """Where each step's cell ends: at the next step, but not further than twice the interval before it. ``before``: the
    last step of an earlier call, 0 without one."""
    if not steps.size:
        return steps
    every = np.diff(np.concatenate([[before], steps]))
    if before <= 0:
        every[0] = every[1] if steps.size > 1 else 1.0
    ends = np.append(steps[1:], steps[-1] + every[-1])
    return np.minimum(ends, steps + 2 * every)


def _bridge(table: np.ndarray) -> np.ndarray:
    """Fill a gap of one bin (a sample that fell just over a border) with the mean of its neighbours."""
    gap = np.isnan(table[:, 1:-1])
    between = (table[:, :-2] + table[:, 2:]) / 2
    out = table.copy()
    out[:, 1:-1][gap] = between[gap]
    return out
