"""Root mean square of the gradient of every module's output over steps, as a heat map with modules in model order and a
log colour scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.core.columns import Columns
from workbench.plots import activations, by_module, cells
from workbench.plots.base import Cursor
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "activation_gradients"
TITLE = "Gradient of each module's output (RMS, log scale)"
TAB = "inside"
AXIS = "step"
EMPTY = activations.EMPTY
WIDE = True
HEIGHT = 420


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """``activations.columns_of`` gradients."""
    return activations.columns_of(store, cursor, "gradient")


def thin(columns: Columns) -> Columns:
    """Merge cells into fewer, wider ones."""
    return cells.thin(columns)


def figure(source: ColumnDataSource) -> Figure:
    """Draw the heat map with its colour bar."""
    return by_module.module_figure(source, TITLE, activations.TIPS, height=HEIGHT, log=True)
