"""Entropy of every module's attention over steps, as a share of that of uniform attention, as a heat map."""

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

NAME = "attention"
TITLE = "Attention entropy (1: uniform, 0: a single key)"
TAB = "inside"
AXIS = "step"
EMPTY = "No attention was looked at: --watch attention does, where torch's or transformers' attention is used."
WIDE = True
HEIGHT = 300


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """Cells (``by_module.module_columns``) of the entropy's share: entropy (nats), share, logit (the largest)."""
    names = {"entropy": "entropy", "share": "entropy_share", "logit": "max_logit"}
    return by_module.module_columns(
        store, cursor, table="attention", combine=_combine, colour="entropy_share", names=names
    )


def _combine(raw: Columns, store: Store) -> pd.DataFrame:
    return inside.combine_attention(raw, store.mesh)


def thin(columns: Columns) -> Columns:
    """Merge cells into fewer, wider ones."""
    return cells.thin(columns)


def figure(source: ColumnDataSource) -> Figure:
    """Draw the heat map with its colour bar; 1 is uniform attention, 0 attention to one key."""
    tips = [("entropy", "@entropy{number} nats"), ("of uniform", "@share{0.0 %}"), ("largest logit", "@logit{number}")]
    return by_module.module_figure(source, TITLE, tips, height=HEIGHT, log=False, low=0.0, high=1.0)
