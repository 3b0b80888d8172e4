"""Work time of each rank per step relative to the median rank, as a heat map; a straggler is an orange row.

The work time is the step time without waiting for other ranks: data, transfer, forward, backward, optimizer. The step
time itself does not show a straggler, as in synchronous training all ranks wait for the slowest one.
"""

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

NAME = "lag"
TITLE = "Work time per step relative to the median rank (%)"
TAB = "ranks"
AXIS = "step"
WIDE = True
EMPTY = "No phases were recorded: train with --monitor light or full."
PERIOD_S = 1.0
OWN_WORK = ("data", "transfer", "forward", "backward", "optimizer")
#: a rank is a straggler if its work time exceeds the median by this fraction
STRAGGLER = 0.05


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """One cell per step and row: step, until, row, label (the row's ranks), colour (percent above the median of the
    pipeline stage, of the slowest rank in the row)."""
    steps, last = cursor or (None, 0.0)
    phases, steps = rows.whole_steps(store, "phases", steps)
    ranks = store.mesh.world_size
    at, table = own_work(phases, ranks)
    relative = 100 * against_median(table, store)
    _, firsts = rows.rank_groups(ranks)
    if firsts.size < ranks:
        relative = np.fmax.reduceat(relative, firsts, axis=0)
    labels = [rows.rank_label(int(first), ranks) for first in firsts]
    out = heat.make_cells(at, rows.spacing(at.astype(float), last), relative, labels)
    if at.size:
        last = float(at[-1])
    return (thin(out) if cursor is None else out), (steps, last)


def thin(columns: Columns) -> Columns:
    """Merge cells into fewer, wider steps."""
    return rows.thin_cells(columns)


def own_work(phases: Columns, ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """The steps, and a table (rank, step) of work times in ms; NaN where a rank has no phases."""
    own = np.isin(phases["phase"], OWN_WORK) & (phases["rank"] < ranks)
    return rows.table_of(phases["step"][own], phases["rank"][own], phases["duration_ms"][own], ranks)


def against_median(table: np.ndarray, store: Store) -> np.ndarray:
    """Values of a table (rank, step) relative to the median over the ranks of the same pipeline stage: 0.1 is 10 %
    more."""
    if not table.size:
        return table
    out = np.full(table.shape, np.nan)
    stages = np.array([store.mesh.coordinates(rank).pp for rank in range(table.shape[0])])
    for stage in range(store.mesh.pp):
        own = stages == stage
        if (~np.isnan(table[own])).any():
            median = np.nanmedian(np.where(np.isnan(table[own]).all(axis=0), 0.0, table[own]), axis=0)
            with np.errstate(invalid="ignore", divide="ignore"):
                out[own] = table[own] / median - 1
    return out


def figure(source: ColumnDataSource) -> Figure:
    """Draw the heat map with its colour bar."""
    drawn = heat.new_figure(TITLE, x_label="step", y_label="rank", height=260, marks="step")
    mapper = heat.make_mapper(palette=heat.diverging_palette(), low=-30, high=30)
    tips = [("rank", "@label"), ("step", "@step{0}"), ("relative to the median", "@colour{+0.0} %")]
    heat.draw(source, drawn, mapper, tips, ticks=8)
    theme.add_colour_bar(drawn, mapper, log=False, format="+0")
    return theme.finish(drawn)
