"""What a figure is: one module per figure, used by the live panel and by the report alike.

A figure module has ``NAME`` (an identifier), ``TITLE`` (for people), ``TAB`` (one of ``TABS``), ``AXIS`` (what its x
is: "step", "time" in seconds since the first device sample, or ""), ``columns(store, cursor)`` and ``figure(source)``:

- ``columns`` returns the new rows since ``cursor`` (None: all) as plain columns of one length, and the cursor after
  them. The panel streams them into the source in the browser; the report calls it once. A run may lack the table that
  the figure shows: then there are no rows.
- ``figure`` draws a Bokeh figure on a ``ColumnDataSource`` with the columns of ``columns`` (maybe of no rows yet).
  Whatever the figure derives from its data (ranges, factors), it derives in the browser, so that streaming suffices.

And it may have

- ``WIDE = True``: takes the whole width. ``EMPTY``: what to say while there are no rows.
- ``height(columns)``: the height in pixels that these rows need, where the page can give each figure its own.
- ``REPLACE = True``: ``columns`` returns the whole content anew when it changed, and no rows when it did not.
- ``PERIOD_S``: the least time between two updates in the panel (default: none).
- ``CHOICE``: "rank" or "layer": ``columns`` takes a third argument ``chosen``: a rank, or a layer's name, or None.
- ``thin(columns)``: fewer of the rows that ``columns`` gave, when they have become too many (default: ``rows.thin``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from workbench.core.columns import Columns
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

Cursor = Any

#: tabs of the panel that have figures, and their titles
TABS = {
    "overview": "Overview",
    "ranks": "Ranks",
    "gradients": "Gradients",
    "communication": "Communication",
    "timeline": "Timeline",
    "samples": "Samples",
}


class Plot(Protocol):
    """A figure module."""

    NAME: str
    TITLE: str
    TAB: str
    AXIS: str

    def columns(self, store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
        """New rows since ``cursor``, and the cursor after them."""

    def figure(self, source: ColumnDataSource) -> Figure:
        """A Bokeh figure on such columns."""
