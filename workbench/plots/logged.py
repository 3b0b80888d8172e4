"""What the cell logged with ``log``, over steps: the names whose values are about as large as those of the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.core.columns import Columns
from workbench.plots import by_name
from workbench.plots.base import Cursor
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "logged"
TITLE = "Logged values"
TAB = "overview"
AXIS = "step"
REPLACE = True
PERIOD_S = by_name.PERIOD_S
EMPTY = "Nothing was logged: log(name, value) in the cell adds a curve."


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step, and one column per curve: NaN in steps without a value."""
    return by_name.columns(store, cursor, group=0)


def height(columns: Columns) -> int:
    """Pixels."""
    return by_name.height(columns)


def figure(source: ColumnDataSource) -> Figure:
    """Draw one line per curve."""
    return by_name.draw(source, TITLE)
