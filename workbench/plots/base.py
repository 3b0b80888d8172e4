"""The interface of a figure module, which the live panel and the report both use.

A figure module defines

- ``NAME``: its identifier. ``TITLE``: the heading that users see. ``TAB``: one of ``TABS``. - ``AXIS``: the meaning of
x: "step", "time" (seconds since the first device sample), or "" for anything else. - ``columns(store, cursor)``:
returns the rows that are new since ``cursor`` (None: all rows) as columns of equal length,
  and the next cursor. The panel streams the rows to the data source in the browser; the report calls it once. If the
  run has no such data, the columns have no rows.
- ``figure(source)``: draws a Bokeh figure for a ``ColumnDataSource`` that has the columns of ``columns``, possibly
  without rows. Ranges and factors are computed in the browser, so that new rows need nothing but streaming.

It may also define

- ``WIDE = True``: the figure takes the full width. ``EMPTY``: why there may be no rows; a figure without rows is not
  shown.
- ``height(columns)``: the height in pixels that these rows need.
- ``REPLACE = True``: ``columns`` returns the complete content when it has changed, and no rows otherwise.
- ``PERIOD_S``: minimum number of seconds between two updates in the panel (default: none).
- ``CHOICE``: "rank" or "layer". ``columns`` then takes a third argument ``chosen``: the selected one, or None.
- ``thin(columns)``: returns fewer rows when there are too many to draw (default: ``row_views.thin``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from workbench.core.columns import Columns
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

Cursor = Any

#: tabs of the panel that have figures, with their titles
TABS = {
    "overview": "Overview",
    "ranks": "Ranks",
    "gradients": "Gradients",
    "inside": "Inside",
    "communication": "Communication",
    "timeline": "Timeline",
    "samples": "Samples",
}


class Plot(Protocol):
    """A figure module, as described above."""

    NAME: str
    TITLE: str
    TAB: str
    AXIS: str

    def columns(self, store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
        """Return the rows since ``cursor`` and the next cursor."""

    def figure(self, source: ColumnDataSource) -> Figure:
        """Draw the figure for a source with these columns."""
