"""Accuracy on the validation set, in percent, over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "validation"
TITLE = "Accuracy on the validation set"
TAB = "samples"
AXIS = "step"
EMPTY = "No samples: an evaluation can generate text, or measure accuracy and a confusion matrix."


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step, accuracy (percent)."""
    events, after = rows.told_since(store, cursor or 0)
    found = np.array(rows.validations(events, "accuracy"), dtype=float).reshape(-1, 2)
    out = {"step": found[:, 0], "accuracy": 100 * found[:, 1]}
    return (rows.thin(out) if cursor is None else out), after


def figure(source: ColumnDataSource) -> Figure:
    """Draw the evaluations as points on a line."""
    from bokeh.models import DataRange1d, HoverTool

    y_range = DataRange1d(range_padding=0.15)
    drawn = theme.new_figure(TITLE, x_label="step", y_label="accuracy (%)", height=320, y_range=y_range, marks="step")
    drawn.line("step", "accuracy", source=source, color=theme.VALIDATION, line_width=2)
    points = drawn.scatter("step", "accuracy", source=source, color=theme.VALIDATION, size=8, line_color=None)
    drawn.add_tools(HoverTool(renderers=[points], tooltips=[("step", "@step{0}"), ("accuracy", "@accuracy{0.0} %")]))
    return theme.finish(drawn)
