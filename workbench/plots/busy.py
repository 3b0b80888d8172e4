"""How busy each rank's device was: a heat map of ranks over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import heat, theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "busy"
TITLE = "How busy ranks are (%)"
TAB = "ranks"
AXIS = "time"
EMPTY = "No device samples yet."
PERIOD_S = 1.0


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """A cell per time bin and row of ranks: time, until (s since the first sample), row, label (its ranks),
    colour (percent, the mean over the row's ranks)."""
    name = "gpu_percent" if rows.has_gpu(store) else "cpu_percent"
    bins, table, after = rows.rank_bins(store, name, cursor)
    ranks = store.mesh.world_size
    group, firsts = rows.rank_groups(ranks)
    if firsts.size < ranks:
        table = np.add.reduceat(np.nan_to_num(table), firsts, axis=0) / np.bincount(group)[:, None]
    labels = [rows.rank_label(int(first), ranks) for first in firsts]
    begin = bins * rows.BIN_S
    out = heat.cells(begin, begin + rows.BIN_S, table, labels, name="time")
    return (thin(out) if cursor is None else out), after


def thin(columns: Columns) -> Columns:
    """Fewer and wider time bins."""
    return rows.thin_cells(columns, x="time")


def figure(source: ColumnDataSource) -> Figure:
    """The heat map with its scale."""
    drawn = heat.new_figure(TITLE, x_label=theme.ELAPSED, y_label="rank", height=260, marks="time")
    mapper = heat.mapper(low=0)
    tips = [("rank", "@label"), ("elapsed", "@time{00:00:00}"), ("busy", "@colour{0} %")]
    heat.draw(source, drawn, mapper, tips, x="time", ticks=8)
    theme.elapsed(drawn)
    theme.add_colour_bar(drawn, mapper, log=False)
    return theme.finish(drawn)
