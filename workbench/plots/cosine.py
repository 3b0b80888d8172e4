"""How well each data-parallel replica's gradient agrees with the averaged one: the cosine of the angle between them.

Plotted against columns of the records: ``dot`` (inner product of a local gradient with the reduced one over the same
elements) and ``sum_sq``. Low on one rank alone: look at its data; low on all: the batch is small for this model now.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from workbench.mesh import Mesh
from workbench.plots import per_rank, rows, theme
from workbench.plots.base import Cursor
from workbench.telemetry.store import Columns, Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "cosine"
TITLE = "Agreement of the ranks' gradients (cosine)"
TAB = "gradients"
AXIS = "step"
CHOICE = "rank"
EMPTY = "The cosine needs two data-parallel ranks, and a plan that knows their own gradients."


def columns(store: Store, cursor: Cursor | None, chosen: int | None = None) -> tuple[Columns, Cursor]:
    """step and a column ``cosine_<rank>`` per data-parallel replica (its first rank), or a band of them."""
    raw, after = rows.whole_steps(store, "gradients", cursor)
    steps, table = replica_cosines(raw, store.mesh)
    some = ~np.isnan(table).all(axis=0) if table.size else np.zeros(steps.size, dtype=bool)
    size = store.mesh.tp * store.mesh.pp
    replica = None if chosen is None else chosen // size
    band = store.mesh.world_size > theme.MOST_LINES
    out = {"step": steps[some].astype(float), **rows.lines(table[:, some], "cosine", replica, band=band)}
    if not band:
        out = {f"cosine_{int(name[7:]) * size}" if name != "step" else name: values for name, values in out.items()}
    return (rows.thin(out) if cursor is None else out), after


def replica_cosines(raw: Columns, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the ``gradients`` table -> steps, and a table (replica, step) of cosines; NaN where they are unknown.

    cos = sum(dot) / (|local| |reduced|), over all layers, each element once: of parts that are the same on all
    tensor-parallel ranks the first rank's are taken.
    """
    local = (raw["scope"] == "local") & ~np.isnan(raw["dot"]) & (raw["rank"] < mesh.world_size)
    local &= (_shard(raw, mesh) >= 0) | (raw["rank"] % mesh.tp == 0)
    reduced = raw["scope"] == "reduced"
    steps = np.unique(raw["step"][local])
    if not steps.size or mesh.dp < 2:
        return steps[:0], np.empty((mesh.dp, 0))
    parts = _reduced_parts({name: values[reduced] for name, values in raw.items()}, mesh)
    replica = raw["rank"][local] // (mesh.tp * mesh.pp)
    keys = _keys({name: values[local] for name, values in raw.items()}, mesh)
    own = np.array([parts.get(key, math.nan) for key in keys])
    sums = [
        rows.table_of(raw["step"][local], replica, values, mesh.dp)[1]
        for values in (raw["dot"][local], raw["sum_sq"][local], own)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        return steps, sums[0] / np.sqrt(sums[1] * sums[2])


def _keys(raw: Columns, mesh: Mesh) -> list[tuple[int, str, int]]:
    """(step, layer, shard): rows of one key are over the same elements."""
    return list(zip(raw["step"].tolist(), raw["layer"].tolist(), _shard(raw, mesh).tolist(), strict=True))


def _shard(raw: Columns, mesh: Mesh) -> np.ndarray:
    """Which tensor-parallel shard each row is of; -1: of elements that all of them hold."""
    return np.where(np.char.find(raw["sharded"].astype(str), "tp") >= 0, raw["rank"] % mesh.tp, -1)


def _reduced_parts(raw: Columns, mesh: Mesh) -> dict[tuple[int, str, int], float]:
    """Squared norm of the reduced gradient per key; slices of data-parallel ranks are added, copies are not."""
    sliced = np.char.find(raw["sharded"].astype(str), "dp") >= 0
    parts: dict[tuple[int, str, int], float] = {}
    for key, value, is_slice in zip(_keys(raw, mesh), raw["sum_sq"].tolist(), sliced.tolist(), strict=True):
        parts[key] = parts.get(key, 0.0) + value if is_slice else value
    return parts


def figure(source: ColumnDataSource) -> Figure:
    """A line per replica."""
    return per_rank.draw(source, TITLE, prefix="cosine", y_label="cosine", number="{0.000}", x="step", start=None)
