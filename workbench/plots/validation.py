"""Metrics on the validation data that are shares, such as the accuracy, in percent over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.core.columns import Columns
from workbench.plots import by_metric
from workbench.plots.base import Cursor
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "validation"
TITLE = "Validation metrics in percent"
TAB = "samples"
AXIS = "step"
REPLACE = True
EMPTY = (
    "No samples: an evaluation can generate text, or measure accuracy and a confusion matrix, "
    "and log.image and log.text in the cell add images and texts."
)


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step, and one column per metric that is stated in percent."""
    return by_metric.columns(store, cursor, shares=True)


def figure(source: ColumnDataSource) -> Figure:
    """Draw one line per metric."""
    return by_metric.draw(source, TITLE, unit="%")
