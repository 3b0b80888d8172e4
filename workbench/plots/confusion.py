"""The most recent confusion matrix: rows are true classes, columns predicted ones, colours the share of the row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.core.records import EventKind
from workbench.events.decode import of_kind
from workbench.plots import heat, theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "confusion"
TITLE = "Confusion matrix of the latest evaluation"
TAB = "samples"
AXIS = ""
REPLACE = True
EMPTY = "No confusion matrix: only evaluations of a classifier measure one."
#: largest number of classes for which counts are written into the cells
_READABLE = 16


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """One row per cell: true, predicted (class numbers), count, share (of the true class), text, ink (its colour),
    step."""
    events, after = rows.told_since(store, cursor or 0)
    own = list(of_kind(events, EventKind.VALIDATION, "confusion_matrix"))
    matrix, step = np.empty((0, 0)), 0
    if own:
        step = own[-1].step
        try:
            found = np.asarray(own[-1].value, dtype=float)
        except (TypeError, ValueError, OverflowError):  # a recipe that logs something else under this name
            found = np.empty((0, 0))
        matrix = found if found.ndim == 2 else matrix
    share = matrix / np.maximum(np.nansum(matrix, axis=1, keepdims=True), 1)
    true, predicted = np.indices(matrix.shape)
    readable = 0 < matrix.shape[0] <= _READABLE
    texts = [f"{value:g}" if readable and value else "" for value in matrix.ravel()]
    out = {
        "true": true.ravel().astype(float),
        "predicted": predicted.ravel().astype(float),
        "count": matrix.ravel(),
        "share": share.ravel(),
        "text": np.array(texts, dtype=object),
        "ink": np.array(["#1f2328" if value > 0.6 else "#ffffff" for value in share.ravel()], dtype=object),
        "step": np.full(matrix.size, float(step)),
    }
    return out, after


def figure(source: ColumnDataSource) -> Figure:
    """Draw shaded cells with their counts."""
    from bokeh.core.properties import value
    from bokeh.models import AdaptiveTicker, DataRange1d, HoverTool

    drawn = theme.new_figure(
        TITLE,
        x_label="predicted class",
        y_label="true class",
        height=320,
        brush=False,
        x_range=DataRange1d(range_padding=0),
        y_range=DataRange1d(range_padding=0, flipped=True),
    )
    mapper = heat.make_mapper(low=0, high=1)
    shade = {"field": "share", "transform": mapper}
    cells = drawn.rect("predicted", "true", 1, 1, source=source, fill_color=shade, line_color=None)
    drawn.text(
        "predicted",
        "true",
        text="text",
        source=source,
        text_color="ink",
        text_align="center",
        text_baseline="middle",
        text_font_size="11px",
        text_font=value(theme.FONT),
    )
    for axis in drawn.axis:
        axis.ticker = AdaptiveTicker(min_interval=1, desired_num_ticks=12, num_minor_ticks=0)
    drawn.ygrid.visible = False
    theme.add_colour_bar(drawn, mapper, log=False, format="0%")
    tips = [
        ("true class", "@true{0}"),
        ("predicted", "@predicted{0}"),
        ("count", "@count{0}"),
        ("share of the true class", "@share{0.0 %}"),
        ("step", "@step{0}"),
    ]
    drawn.add_tools(HoverTool(renderers=[cells], tooltips=tips))
    return theme.finish(drawn)
