"""Cells of heat maps: how long a value is shown after the step at which it was measured, and fewer cells for long runs.

Pure functions of columns. A cell reaches from column ``step`` (or another x) to column ``until`` in a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from workbench.core.columns import Columns
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

#: the cell of a value that is no longer new: until which age (in intervals between the two last values), and how much
#: of its colour it keeps; an older value is not shown, but one empty cell lets the axis reach as far as the run
FADING = ((0.5, 0.75), (1.0, 0.6), (2.0, 0.35), (4.0, 0.2), (16.0, 0.0), (64.0, 0.0), (256.0, 0.0), (4096.0, 0.0))
#: the interval in steps of a row's first value, where the run does not set one
FIRST_INTERVAL = 4.0
#: gaps between cells are kept that are wider than this share of the axis
SEEN = 0.02
_SHARES = np.array([share for share, _ in FADING])
_ALPHAS = np.array([1.0, *(alpha for _, alpha in FADING)])


def hold(measured: Columns, before: Columns | None, store: Store, *, by: str | None = "row") -> tuple[Columns, Columns]:
    """Cells of values that were ``measured`` (columns ``step`` and any others), and of those ``before``, which an
    earlier call returned as its second part.

    A value has a cell of its own step in full colour, and paler ones until the next value of its row, by its age
    (``FADING``). Columns of cells: ``step`` and ``until``, ``measured`` (the step of the value), the given ones,
    ``alpha`` (share of the colour), ``edge`` (1 for a cell in full colour). ``by``: the column that names the row;
    None: the values of a step belong together, so that all of them end where those of the next step begin. A cell
    that the run has not passed yet comes with a later call.
    """
    given = float(store.spec.monitor.grad_every or FIRST_INTERVAL)
    fresh = {**measured, "every": np.full(measured["step"].size, math.nan), "shown": measured["step"].astype(float)}
    if before is not None:
        fresh = {name: np.concatenate([before[name], values]) for name, values in fresh.items()}
    row = np.zeros(fresh["step"].size) if by is None else fresh[by]
    order = np.lexsort((fresh["step"], row))
    values, row = {name: each[order] for name, each in fresh.items()}, row[order]
    reached, is_final = _reached(store, values["step"])
    end, values["every"], is_last = _ends(row, values["step"], values["every"], given)

    grown = np.cumsum(np.column_stack([np.ones(row.size), np.zeros((row.size, _SHARES.size))]), axis=1)
    grown[:, 1:] = np.maximum(1.0, np.rint(values["every"][:, None] * _SHARES))
    until = values["step"][:, None] + grown
    start = np.column_stack([values["step"], until[:, :-1]])
    known = is_final | np.isfinite(end)[:, None] | (until <= reached)
    until = np.minimum(until, np.minimum(end, reached if is_final else math.inf)[:, None])
    start = np.maximum(start, values["shown"][:, None])
    is_first = row == (row[0] if row.size else 0)
    is_first[1:] &= values["step"][1:] != values["step"][:-1]
    at, piece = np.nonzero(known & (until > start) & ((_ALPHAS > 0) | is_first[:, None]))
    values["shown"] = np.maximum(values["shown"], np.where(known & (until > start), until, -math.inf).max(axis=1))
    cells = {"step": start[at, piece], "until": until[at, piece], "measured": values["step"][at].astype(float)}
    cells |= {name: values[name][at] for name in measured if name not in cells}
    cells |= {"alpha": _ALPHAS[piece], "edge": (piece == 0).astype(float)}
    in_time = np.lexsort((row[at], cells["measured"], cells["step"]))
    kept = {name: each[is_last] for name, each in values.items()}
    return {name: each[in_time] for name, each in cells.items()}, kept


def _reached(store: Store, steps: np.ndarray) -> tuple[float, bool]:
    """The end of the last step that is whole, and whether none will follow."""
    whole, ended = rows.last_whole_step(store), rows.has_ended(store)
    latest = float(steps.max(initial=0))
    return (max(whole, latest) if whole < 2**62 else latest) + 1, ended


def _ends(
    row: np.ndarray, step: np.ndarray, every: np.ndarray, first: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of values by row and step: the step of the next value in the row (infinite: none yet), the interval since the
    one before (as it was known, else ``first``), and whether a value is the row's last."""
    begins = rows.begins(row, step)
    run = np.cumsum(begins) - 1
    of_row, at = row[begins], step[begins].astype(float)
    same = of_row[1:] == of_row[:-1]
    end, gap = np.full(at.size, math.inf), np.full(at.size, math.nan)
    end[:-1][same] = at[1:][same]
    gap[1:][same] = np.diff(at)[same]
    gap = gap[run]
    interval = np.where(np.isnan(every), np.where(np.isnan(gap), first, gap), every)
    return end[run], interval, np.isinf(end)[run]


def carry(measured: Columns, before: Columns | None, names: Sequence[str], *, since: str) -> Columns:
    """``measured`` (by ``step`` and ``row``), in which NaN of the columns ``names`` becomes the last known value of the
    row. ``since``: name of a new column, the step at which that was measured. ``before``: as of ``hold``."""
    is_known = ~np.isnan(measured[names[0]])
    out = {**measured, since: np.where(is_known, measured["step"].astype(float), math.nan)}
    old = 0 if before is None else before["step"].size
    joined = out if before is None else {name: np.concatenate([before[name], values]) for name, values in out.items()}
    order = np.lexsort((joined["step"], joined["row"]))
    row, value = joined["row"][order], joined[names[0]][order]
    place = np.arange(row.size)
    latest = np.maximum.accumulate(np.where(~np.isnan(value) | rows.begins(row), place, 0)) if row.size else place
    source = np.empty(row.size, dtype=int)
    source[order] = order[latest]
    for name in (*names, since):
        out[name] = joined[name][source][old:]
    return out


def thin(columns: Columns, budget: int = rows.CELLS, x: str = "step", row: str = "row") -> Columns:
    """At most ``budget`` cells: those of a row that begin within the same n steps (of which a cell begins in any row)
    become one, which reaches from the first to the last and has the value of the last; a gap that can be seen remains
    one. ``mark``, where there is such a column, is the largest of all."""
    if columns[x].size <= budget:
        return columns
    if "alpha" in columns:
        kept = columns["alpha"] > 0
        kept[np.argmax(columns["until"])] = True
        columns = {name: values[kept] for name, values in columns.items()}
    places, index = np.unique(columns[x], return_inverse=True)
    count = np.unique(columns[row]).size
    if places.size < 3:
        return columns
    stride = math.ceil(places.size / max(1, budget // count))
    group = (places.size - 1 - index) // stride  # counted from the newest
    order = np.lexsort((columns[x], columns[row], -group))
    begins = rows.begins(columns[row][order], group[order])
    gap = columns[x][order][1:] - columns["until"][order][:-1]
    begins[1:] |= gap > SEEN * (places[-1] - places[0])
    starts = np.flatnonzero(begins)
    out = {name: values[order][np.append(starts[1:], order.size) - 1] for name, values in columns.items()}
    out[x] = columns[x][order][starts]
    if "mark" in columns:
        out["mark"] = np.maximum.reduceat(columns["mark"][order], starts)
    out["until"] = np.maximum.reduceat(columns["until"][order], starts)
    if "alpha" in columns:
        width = (columns["until"] - columns[x])[order]
        total = np.add.reduceat(width, starts)
        out["alpha"] = np.add.reduceat(width * columns["alpha"][order], starts) / total
        out["edge"] = (out["alpha"] == 1).astype(float)
    in_time = np.lexsort((out[row], out[x]))
    return {name: values[in_time] for name, values in out.items()}
