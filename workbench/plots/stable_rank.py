"""Stable rank of every weight over steps, as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.core.columns import Columns
from workbench.plots import by_module, cells
from workbench.plots.base import Cursor
from workbench.telemetry.inside.spectra import combine_spectra
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "stable_rank"
TITLE = "Stable rank of weights"
TAB = "inside"
AXIS = "step"
EMPTY = "No weight was looked at: --watch weights does."
WIDE = True
HEIGHT = 300


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """Cells (``by_module.module_columns``) of the stable rank: stable_rank, sigma_max (largest singular value), norm
    (Frobenius)."""
    names = {name: name for name in ("stable_rank", "sigma_max", "norm")}
    return by_module.module_columns(store, cursor, table="spectra", combine=_combine, colour="stable_rank", names=names)


def _combine(raw: Columns, store: Store) -> pd.DataFrame:
    return combine_spectra(raw)


def thin(columns: Columns) -> Columns:
    """Merge cells into fewer, wider ones."""
    return cells.thin(columns)


def figure(source: ColumnDataSource) -> Figure:
    """Draw the heat map with its colour bar; 1 is a matrix of rank one."""
    tips = [
        ("stable rank", "@stable_rank{number}"),
        ("largest singular value", "@sigma_max{number}"),
        ("norm", "@norm{number}"),
    ]
    return by_module.module_figure(source, TITLE, tips, height=HEIGHT, log=True, low=1.0)
