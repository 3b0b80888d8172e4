"""Learning rate over steps, as set by the schedule and the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.core.columns import Columns
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.plots.browser_numbers import hover
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "learning_rate"
TITLE = "Learning rate"
TAB = "overview"
AXIS = "step"
EMPTY = "No completed step."


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step, lr."""
    metrics, cursor_after = rows.metrics_since(store, cursor)
    out = {name: metrics[name].astype(float) for name in ("step", "lr")}
    return (rows.thin(out) if cursor is None else out), cursor_after


def figure(source: ColumnDataSource) -> Figure:
    """Draw a line over steps; y starts at zero."""
    from bokeh.models import DataRange1d

    y_range = DataRange1d(start=0, range_padding=0.1)
    drawn = theme.new_figure(TITLE, x_label="step", y_label="learning rate", y_range=y_range, marks="step")
    line = drawn.line("step", "lr", source=source, color=theme.LOSS, line_width=2)
    tips = [("step", "@step{0}"), ("learning rate", "@lr{number}")]
    drawn.add_tools(hover(tips, renderers=[line], mode="vline"))
    return theme.finish(drawn)
