"""Cosine of the angle between each data-parallel replica's own gradient and the averaged one, over steps.

It is computed from the layers' cosines and norms of ``telemetry.gradients.combine``; ``cosine_kind`` says how a cosine
was obtained. A low cosine on a single rank points to its data; low cosines on all ranks mean that the batch is too
small for the current gradient noise.

Dots are the cosines of single steps, which batches scatter; the line is their running average, and the band its
interval, from their spread (``telemetry.running``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh
from workbench.plots import per_rank, theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry import running
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "cosine"
TITLE = "Cosine to the mean (circled: estimated)"
TAB = "gradients"
AXIS = "step"
CHOICE = "rank"
EMPTY = "The cosine needs at least two data-parallel ranks and a plan that gives access to each rank's own gradient."
#: meaning of ``cosine_kind``, from the most to the least accurate
KINDS = {"exact": "exact", "norms": "computed from norms", "slice": "estimated from each rank's slice"}


def columns(store: Store, cursor: Cursor | None, chosen: int | None = None) -> tuple[Columns, Cursor]:
    """step, a column ``cosine_<rank>`` per data-parallel replica (named by its first rank) or a band over them, ``how``
    (how the cosines were obtained, in words) and ``estimated`` (1 or 0). Beside the column of a replica its running
    average ``average_<rank>``, and the interval of that, ``low_<rank>`` to ``high_<rank>``."""
    read, before = cursor or (None, None)
    table, _, read = rows.combined(store, read)
    steps, cosines, kinds = replica_cosines(table, store.mesh)
    size = store.mesh.replica_size
    replica = None if chosen is None else chosen // size
    band = store.mesh.world_size > rows.MOST_LINES
    out = {"step": steps.astype(float), **rows.lines(cosines, "cosine", replica, band=band)}
    if not band:
        out = {f"cosine_{int(name[7:]) * size}" if name != "step" else name: values for name, values in out.items()}
        averages, before = _averages(cosines, before, size)
        out |= averages
    out["how"] = np.array([KINDS[kind] for kind in kinds], dtype=object)
    out["estimated"] = np.array([kind == "slice" for kind in kinds], dtype=float)
    return (thin(out) if cursor is None else out), (read, before)


def _averages(cosines: np.ndarray, before: running.State | None, size: int) -> tuple[Columns, running.State]:
    """Average and interval of each replica's cosines (replica, step); ``size``: ranks of a replica."""
    count = cosines.shape[0]
    means, shares, before = running.follow(np.concatenate([cosines, cosines**2]), before)
    low, high = running.interval_of_mean(means[:count], means[count:], shares[:count])
    average = np.where(np.isnan(low), np.nan, means[:count])
    named = {"average": average, "low": np.maximum(low, -1), "high": np.minimum(high, 1)}
    columns = {f"{name}_{row * size}": table[row] for name, table in named.items() for row in range(count)}
    return columns, before


def thin(columns: Columns) -> Columns:
    """Keep fewer rows, including the extremes of the cosines."""
    return rows.thin(columns, of=[name for name in columns if name.startswith("cosine_")])


def replica_cosines(table: Columns, mesh: Mesh) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Compute the cosines of whole gradients from the rows of ``combine_columns``.

    Returns the steps, a table (replica, step) of cosines, NaN where unknown, and for each step the least accurate
    ``cosine_kind`` among its layers. cos = sum(dot) / (|local| |reduced|) over the layers whose cosine is known, where
    a layer's dot is its cosine times both norms.
    """
    known = np.flatnonzero((table["scope"] == "local") & ~np.isnan(table["cosine"]))
    if mesh.dp < 2 or not known.size:
        return np.empty(0, dtype=int), np.empty((mesh.dp, 0)), []
    replica = table["rank"][known] // mesh.replica_size
    first = rows.begins(table["step"][known], table["layer"][known], replica)
    known, replica = known[first], replica[first]
    step, own = table["step"][known], table["norm"][known]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = own / table["norm_ratio"][known]
        products = (table["cosine"][known] * own * mean, own**2, mean**2)
        (steps, dot), (_, own_sq), (_, mean_sq) = (rows.table_of(step, replica, each, mesh.dp) for each in products)
        cosines = dot / np.sqrt(own_sq * mean_sq)
    order = {kind: place for place, kind in enumerate(KINDS)}
    accuracy = np.array([order[kind] for kind in table["cosine_kind"][known]])
    return steps, cosines, [list(KINDS)[accuracy[step == at].max()] for at in steps]


def figure(source: ColumnDataSource) -> Figure:
    """Draw one line per replica, with its interval; estimated values are circled."""
    drawn: Any = per_rank.draw(
        source, TITLE, prefix="cosine", y_label="cosine", number="{0.000} (@how)", x="step", start=None
    )
    shown = [name for name in source.data if name.startswith("cosine_")]
    circled = [name for name in shown if name in ("cosine_lowest", "cosine_highest")] or shown
    look = {"marker": "circle", "size": 7, "fill_color": None, "line_color": theme.MARK, "line_alpha": "estimated"}
    for name in circled:
        drawn.scatter("step", name, source=source, **look)
    return theme.finish(drawn)
