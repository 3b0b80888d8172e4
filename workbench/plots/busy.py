"""Use of each rank's device (GPU, or CPU without one) as a heat map of ranks over time.

It says which of many ranks is idle and when. Of as many ranks as there are colours, the lines of ``utilisation`` say
it, and there are no rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import cells, heat, theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "busy"
TITLE = "Which ranks are busy, and when (%)"
TAB = "ranks"
AXIS = "time"
EMPTY = "Of up to 8 ranks, the lines of 'Utilisation per rank' show this."
PERIOD_S = 1.0


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """One cell per time bin and row: time, until (s since the first sample), row, label (the row's ranks), colour
    (percent, mean over the row's ranks)."""
    name = "gpu_percent" if rows.has_gpu(store) else "cpu_percent"
    bins, table, after = rows.rank_bins(store, name, cursor)
    ranks = store.mesh.world_size
    if ranks <= len(theme.RANK_COLOURS):
        bins, table = bins[:0], table[:, :0]
    _, firsts = rows.rank_groups(ranks)
    if firsts.size < ranks:
        known = np.add.reduceat((~np.isnan(table)).astype(float), firsts, axis=0)
        with np.errstate(invalid="ignore"):
            table = np.add.reduceat(np.nan_to_num(table), firsts, axis=0) / known
    labels = [rows.rank_label(int(first), ranks) for first in firsts]
    begin = bins * rows.BIN_S
    out = heat.make_cells(begin, begin + rows.BIN_S, table, labels, name="time")
    return (thin(out) if cursor is None else out), after


def thin(columns: Columns) -> Columns:
    """Merge cells into fewer, wider ones."""
    return cells.thin(columns, x="time")


def figure(source: ColumnDataSource) -> Figure:
    """Draw the heat map with its colour bar."""
    drawn = heat.new_figure(TITLE, x_label=theme.ELAPSED, y_label="rank", height=260, marks="time")
    mapper = heat.make_mapper(low=0)
    tips = [("rank", "@label"), ("elapsed", "@time{00:00:00}"), ("utilisation", "@colour{0} %")]
    heat.draw(source, drawn, mapper, tips, x="time", ticks=8)
    theme.format_elapsed_axis(drawn)
    theme.add_colour_bar(drawn, mapper, log=False)
    return theme.finish(drawn)
