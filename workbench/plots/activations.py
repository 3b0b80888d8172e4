"""Root mean square of every module's output over steps, as a heat map with modules in model order and a log colour
scale."""

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

NAME = "activations"
TITLE = "Activations per module (RMS of the output, log scale)"
TAB = "inside"
AXIS = "step"
EMPTY = "Nothing was looked at inside the model: --watch activations does."
WIDE = True
HEIGHT = 420

_NAMES = {
    "rms": "rms",
    "max_abs": "max_abs",
    "mean": "mean",
    "zeros": "zero_fraction",
    "bad": "nonfinite_count",
    "underflow": "underflow_fraction",
    "overflow": "overflow_fraction",
}
TIPS = [
    ("root mean square", "@rms{number}"),
    ("max |x|", "@max_abs{number}"),
    ("mean", "@mean{number}"),
    ("zeros", "@zeros{0.0 %}"),
    ("near underflow", "@underflow{0.0 %}"),
    ("near overflow", "@overflow{0.0 %}"),
    ("non-finite", "@bad{0}"),
]


def columns_of(store: Store, cursor: Cursor | None, what: str) -> tuple[Columns, Cursor]:
    """Cells (``by_module.module_columns``) of "output" or "gradient": rms, max_abs, mean, zeros, underflow and overflow
    (fractions), bad (count of non-finite elements)."""

    def combine(raw: Columns, store: Store) -> pd.DataFrame:
        own = raw["what"] == what
        return inside.whole_batch({name: values[own] for name, values in raw.items()}, store.mesh)

    return by_module.module_columns(store, cursor, table="activations", combine=combine, colour="rms", names=_NAMES)


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """``columns_of`` outputs."""
    return columns_of(store, cursor, "output")


def thin(columns: Columns) -> Columns:
    """Merge cells into fewer, wider ones."""
    return cells.thin(columns)


def figure(source: ColumnDataSource) -> Figure:
    """Draw the heat map with its colour bar."""
    return by_module.module_figure(source, TITLE, TIPS, height=HEIGHT, log=True)
