"""What a figure is: one module per figure, used by the live panel and by the report alike.

A figure module has ``NAME`` (an identifier), ``TITLE`` (for people), ``columns(store, cursor)`` and ``figure(source)``:

- ``columns`` returns the new rows since ``cursor`` (None: all) as plain columns of one length, and the cursor after
  them. The panel streams them into the source in the browser; the report calls it once.
- ``figure`` draws a Bokeh figure on a ``ColumnDataSource`` with the columns of ``columns`` (maybe of no rows yet).
  Whatever the figure derives from its data (ranges, factors), it derives in the browser, so that streaming suffices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from workbench.telemetry.store import Columns, Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

Cursor = Any


class Plot(Protocol):
    """A figure module."""

    NAME: str
    TITLE: str

    def columns(self, store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
        """New rows since ``cursor``, and the cursor after them."""

    def figure(self, source: ColumnDataSource) -> Figure:
        """A Bokeh figure on such columns."""
