"""Norm of the weight update divided by the norm of the weights, per layer over steps, as a heat map on a log scale.

Around 1e-3 is healthy for most models. A much larger ratio means that the layer is unstable, a much smaller one that it
hardly learns.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import cells, heat, theme
from workbench.plots.base import Cursor
from workbench.plots.gradients import assign_layer_rows
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "update_ratio"
TITLE = "Update-to-weight ratio per layer (L2 norms, log scale)"
TAB = "gradients"
AXIS = "step"
WIDE = True
EMPTY = "No weight statistics were recorded: train with --monitor full."


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """Cells of each layer's ratios (``cells.hold``): step, until, measured, row (position in the model), label (the
    layer), colour (the ratio)."""
    steps, places, before = cursor or (None, {}, None)
    raw, steps = rows.whole_steps(store, "weights", steps)
    places = assign_layer_rows(raw, np.ones(raw["step"].size, dtype=bool), places, store)
    row = np.array([places[str(name)] for name in raw["layer"]], dtype=int)
    width = len(places)
    at, update = rows.table_of(raw["step"], row, raw["update_sq"], width)
    _, weight = rows.table_of(raw["step"], row, raw["weight_sq"], width)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.sqrt(update / weight)
    ratio = np.where(ratio > 0, ratio, math.nan)
    out, before = cells.hold(heat.make_cells(at, at, ratio, list(places)), before, store)
    return (thin(out) if cursor is None else out), (steps, places, before)


def thin(columns: Columns) -> Columns:
    """Merge cells into fewer, wider ones."""
    return cells.thin(columns)


def figure(source: ColumnDataSource) -> Figure:
    """Draw the heat map with its colour bar."""
    drawn = heat.new_figure(TITLE, x_label="step", y_label="", height=340, marks="step")
    mapper = heat.make_mapper(log=True)
    tips = [("layer", "@label"), ("step", "@measured{0}"), ("ratio", "@colour{number}")]
    heat.draw(source, drawn, mapper, tips, **heat.PALER)
    theme.add_colour_bar(drawn, mapper, log=True)
    return theme.finish(drawn)
