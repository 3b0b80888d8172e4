"""Bytes that a rank passes to collectives per step, by kind of collective (mean over ranks)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.core.columns import Columns
from workbench.plots import by_kind, theme
from workbench.plots.base import Cursor
from workbench.plots.browser_numbers import tick_formatter
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "traffic"
TITLE = "Bytes in collectives per rank and step"
HEIGHT = 320
TAB = "communication"
AXIS = "step"
EMPTY = "No communication was recorded: a single rank has none, and --monitor off measures none."


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step and one column per kind of collective: bytes per rank."""
    raw, kinds, place, after = by_kind.read_by_kind(store, cursor)
    steps, table = rows.table_of(raw["step"], place, raw["bytes"].astype(float), len(kinds))
    ranks = store.mesh.world_size
    out = {"step": steps.astype(float), **{kind: table[index] / ranks for index, kind in enumerate(kinds)}}
    return (rows.thin(out) if cursor is None else out), after


def figure(source: ColumnDataSource) -> Figure:
    """Draw one line per kind, on a log scale."""
    drawn = theme.new_figure(TITLE, x_label="step", y_label="bytes", height=HEIGHT, y_axis_type="log", marks="step")
    drawn.yaxis.formatter = tick_formatter("bytes")
    return by_kind.draw(source, drawn, "{bytes}")
