"""Metrics on the validation data that are no shares, such as a perplexity, over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.core.columns import Columns
from workbench.plots import by_metric
from workbench.plots.base import Cursor
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "metrics"
TITLE = "Other validation metrics"
TAB = "samples"
AXIS = "step"
REPLACE = True
EMPTY = "No other metrics on validation data."


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step, and one column per metric, in its own unit."""
    return by_metric.columns(store, cursor, shares=False)


def figure(source: ColumnDataSource) -> Figure:
    """Draw one line per metric."""
    return by_metric.draw(source, TITLE)
