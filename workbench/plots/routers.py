"""Load of the busiest expert of every router over steps, as a multiple of an even load, as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.core.columns import Columns
from workbench.plots import by_module, cells
from workbench.plots.base import Cursor
from workbench.telemetry.inside import activations as inside
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "routers"
TITLE = "Expert load (busiest expert of each router, 1: even)"
TAB = "inside"
AXIS = "step"
EMPTY = "No router of experts was looked at: --watch routers does, where a layer has a row for each expert."
WIDE = True
HEIGHT = 300


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """Cells (``by_module.module_columns``) of the largest load: load, idle (experts without a token), entropy (nats),
    tokens."""
    names = {"load": "max_load", "idle": "idle", "entropy": "entropy", "tokens": "tokens"}
    return by_module.module_columns(store, cursor, table="routers", combine=_combine, colour="max_load", names=names)


def _combine(raw: Columns, store: Store) -> pd.DataFrame:
    return inside.combine_routers(raw, store.mesh)


def thin(columns: Columns) -> Columns:
    """Merge cells into fewer, wider ones."""
    return cells.thin(columns)


def figure(source: ColumnDataSource) -> Figure:
    """Draw the heat map with its colour bar."""
    tips = [
        ("busiest expert", "@load{number} x even"),
        ("idle experts", "@idle{0}"),
        ("entropy", "@entropy{number} nats"),
        ("tokens", "@tokens{0}"),
    ]
    return by_module.module_figure(source, TITLE, tips, height=HEIGHT, log=False, low=1.0)
