"""Bus bandwidth of collectives by kind.

Unlike bytes per second it can be compared between kinds and numbers of ranks (nccl-tests, doc/PERFORMANCE.md). A
collective of few bytes takes as long as any message takes, so it says nothing about bandwidth and is left out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import by_kind, theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "bandwidth"
TITLE = "Bus bandwidth by collective"
TAB = "communication"
AXIS = "step"
WIDE = True
EMPTY = "No collective moved 64 KiB or more. The time of less says nothing about bandwidth."
#: bytes of a collective from which on its time depends on the bandwidth
LEAST_BYTES = 64 * 1024


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step and one column per kind: bus bandwidth in GB/s, the sum of its bytes over the sum of its time."""
    raw, kinds, place, after = by_kind.read_by_kind(store, cursor, LEAST_BYTES)
    moved = raw["bytes"] * by_kind.bus_factor(raw["kind"], raw["group_size"])
    steps, moved_of = rows.table_of(raw["step"], place, moved, len(kinds))
    _, time_of = rows.table_of(raw["step"], place, raw["duration_ms"], len(kinds))
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = moved_of / (time_of * 1e-3) / 1e9
    rate = np.where((time_of > 0) & (rate > 0), rate, math.nan)
    out = {"step": steps.astype(float), **{kind: rate[index] for index, kind in enumerate(kinds)}}
    return (rows.thin(out) if cursor is None else out), after


def figure(source: ColumnDataSource) -> Figure:
    """One line per kind, on a log scale."""
    drawn = theme.new_figure(TITLE, x_label="step", y_label="GB/s", height=400, y_axis_type="log", marks="step")
    return by_kind.draw(source, drawn, "{number} GB/s")
