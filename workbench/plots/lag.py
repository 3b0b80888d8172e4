"""Work time of each rank per step beside the other ranks, as a heat map; a slow rank is an orange row.

The work time is the step time without waiting for other ranks: data, transfer, forward, backward, optimizer. The step
time itself does not show a straggler, as in synchronous training all ranks wait for the slowest one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import cells, heat, theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store
from workbench.telemetry.stragglers import against_others, own_work

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "lag"
TITLE = "Work time relative to the median of the other ranks (%)"
TAB = "ranks"
AXIS = "step"
WIDE = True
EMPTY = "No phases were recorded: train with --monitor light or full."
PERIOD_S = 1.0


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """One cell per step and row: step, until, row, label (the row's ranks), colour (percent above the median of the
    other ranks of the pipeline stage, of the slowest rank in the row)."""
    steps, last = cursor or (None, 0.0)
    phases, steps = rows.whole_steps(store, "phases", steps)
    ranks = store.mesh.world_size
    at, table = own_work(phases, ranks)
    relative = 100 * against_others(table, store.mesh)
    _, firsts = rows.rank_groups(ranks)
    if firsts.size < ranks:
        relative = np.fmax.reduceat(relative, firsts, axis=0)
    labels = [rows.rank_label(int(first), ranks) for first in firsts]
    out = heat.make_cells(at, rows.spacing(at.astype(float), last), relative, labels)
    if at.size:
        last = float(at[-1])
    return (thin(out) if cursor is None else out), (steps, last)


def thin(columns: Columns) -> Columns:
    """Merge cells into fewer, wider ones."""
    return cells.thin(columns)


def figure(source: ColumnDataSource) -> Figure:
    """Draw the heat map with its colour bar."""
    drawn = heat.new_figure(TITLE, x_label="step", y_label="rank", height=260, marks="step")
    mapper = heat.make_mapper(palette=heat.diverging_palette(), low=-30, high=30)
    tips = [("rank", "@label"), ("step", "@step{0}"), ("relative to the other ranks", "@colour{+0.0} %")]
    heat.draw(source, drawn, mapper, tips, ticks=8)
    theme.add_colour_bar(drawn, mapper, log=False, format="+0")
    return theme.finish(drawn)
