"""Distribution of the magnitudes of one layer's gradient over steps: the share between successive powers of two."""

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

NAME = "histogram"
TITLE = "Gradient magnitudes of the selected layer"
TAB = "gradients"
AXIS = "step"
WIDE = True
CHOICE = "layer"
EMPTY = "No histograms were recorded: train with --monitor full."


def columns(store: Store, cursor: Cursor | None, chosen: str | None = None) -> tuple[Columns, Cursor]:
    """Cells of the powers of two of each histogram (``cells.hold``): step, until, measured, exponent (magnitudes from
    2**exponent on), middle, share (of the non-zero elements), layer. ``chosen`` None: the first layer that was
    logged."""
    steps, layer, before = cursor or (None, chosen, None)
    raw, steps = rows.whole_steps(store, "histograms", steps)
    if layer is None and raw["step"].size:
        layer = str(raw["layer"][0])
    own = np.flatnonzero((raw["layer"] == layer) & (raw["scope"] == "reduced"))
    if not own.size:
        own = np.flatnonzero((raw["layer"] == layer) & (raw["scope"] == "local"))
    sums: dict[tuple[int, int], int] = {}
    for index in own:
        begin, step = int(raw["first_exponent"][index]), int(raw["step"][index])
        for place, count in enumerate(raw["counts"][index]):
            if count:
                sums[step, begin + place] = sums.get((step, begin + place), 0) + int(count)
    keys = np.array(sorted(sums), dtype=float).reshape(-1, 2)
    count = np.array([sums[int(step), int(exponent)] for step, exponent in keys], dtype=float)
    places, at = np.unique(keys[:, 0], return_inverse=True)
    total = np.bincount(at, weights=count, minlength=places.size) if count.size else np.empty(0)
    measured = {
        "step": keys[:, 0],
        "exponent": keys[:, 1],
        "middle": keys[:, 1] + 0.5,
        "share": count / total[at] if count.size else count,
        "layer": np.array([layer or ""] * count.size, dtype=object),
    }
    out, before = cells.hold(measured, before, store, by=None)
    return (thin(out) if cursor is None else out), (steps, layer, before)


def thin(columns: Columns) -> Columns:
    """Merge cells into fewer, wider ones."""
    return cells.thin(columns, row="exponent")


def figure(source: ColumnDataSource) -> Figure:
    """Draw the heat map with its colour bar."""
    from bokeh.models import AdaptiveTicker, CustomJSTickFormatter, HoverTool

    drawn = theme.new_figure(TITLE, x_label="step", y_label="|g|", height=280, marks="step", marks_above=True)
    mapper = heat.make_mapper(log=True, low=1e-4, high=1.0)
    shown = drawn.hbar(
        y="middle",
        height=1,
        left="step",
        right="until",
        source=source,
        fill_color={"field": "share", "transform": mapper},
        line_color={"field": "share", "transform": mapper},
        line_width=1,
        **heat.PALER,
    )
    drawn.x_range.range_padding = drawn.y_range.range_padding = 0
    drawn.yaxis.ticker = AdaptiveTicker(base=2, mantissas=[1], min_interval=1, desired_num_ticks=8, num_minor_ticks=0)
    drawn.yaxis.formatter = CustomJSTickFormatter(
        tags=[theme.POWER_OF_TWO],
        code='return "2" + String(tick).replace(/./g, (c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(c)] ?? "⁻");',
    )
    drawn.ygrid.visible = False
    theme.add_colour_bar(drawn, mapper, log=True, format="0.[00]%")
    tips = [
        ("layer", "@layer"),
        ("step", "@measured{0}"),
        ("|g| from 2 to the power", "@exponent{0}"),
        ("share", "@share{0.00 %}"),
    ]
    drawn.add_tools(HoverTool(renderers=[shown], tooltips=tips))
    return theme.finish(drawn)
