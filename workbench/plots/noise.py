"""Gradient noise scale over steps: how large a batch still pays.

From the squared norms at two batch sizes (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training",
appendix A.1): with b samples per replica and B in all, |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b) and
S = (|G_b|^2 - |G_B|^2) / (1/b - 1/B); the noise scale is S / |G|^2, each averaged over steps first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.mesh import Mesh
from workbench.plots import rows, theme
from workbench.plots.base import Cursor
from workbench.telemetry.store import Columns, Store

if TYPE_CHECKING:
    import pandas as pd
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "noise"
TITLE = "Gradient noise scale"
TAB = "gradients"
AXIS = "step"
EMPTY = "The noise scale needs two data-parallel ranks or more."


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step, noise (samples, smoothed; NaN where it is not positive), batch (the run's batch size)."""
    steps, before_g, before_s = cursor or (None, math.nan, math.nan)
    table, _, steps = rows.combined(store, steps)
    at, small, big = squared_norms(table, store.mesh)
    batch = store.spec.batch_size
    true_sq, variance = unbiased(small, big, batch / store.mesh.dp, batch)
    true_sq, variance = rows.smooth(true_sq, before_g), rows.smooth(variance, before_s)
    if at.size:
        before_g, before_s = float(true_sq[-1]), float(variance[-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = variance / true_sq
    noise = np.where((noise > 0) & (true_sq > 0), noise, math.nan)
    out = {"step": at.astype(float), "noise": noise, "batch": np.full(at.size, float(batch))}
    return (thin(out) if cursor is None else out), (steps, before_g, before_s)


def thin(columns: Columns) -> Columns:
    """Fewer rows, with the extremes of what each step gave."""
    return rows.thin(columns, of=["noise"])


def squared_norms(table: pd.DataFrame, mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of ``combine`` -> steps with both, the mean over replicas of |local|^2, and |reduced|^2, over all layers."""
    none = np.empty(0)
    if mesh.dp < 2 or table.empty:
        return none, none, none
    table = table[table["layer"].isin(set(table.loc[table["scope"] == "local", "layer"]))]
    table = table.assign(dp=table["rank"].to_numpy() // (mesh.tp * mesh.pp), sq=table["norm"] ** 2)
    local = table[table["scope"] == "local"].drop_duplicates(["step", "layer", "dp"])
    small = local.groupby(["step", "dp"])["sq"].sum().groupby("step").mean()
    big = table[table["scope"] == "reduced"].drop_duplicates(["step", "layer"]).groupby("step")["sq"].sum()
    both = small.index.intersection(big.index)
    return both.to_numpy(), small[both].to_numpy(float), big[both].to_numpy(float)


def unbiased(small: np.ndarray, big: np.ndarray, b: float, batch: float) -> tuple[np.ndarray, np.ndarray]:
    """Estimates of |G|^2 and of the trace of the gradient's covariance, from squared norms at batches b and B."""
    if b >= batch:
        return np.full(small.size, math.nan), np.full(small.size, math.nan)
    return (batch * big - b * small) / (batch - b), (small - big) / (1 / b - 1 / batch)


def figure(source: ColumnDataSource) -> Figure:
    """A line over steps, and the batch size beside it."""
    from bokeh.models import HoverTool

    drawn: Any = theme.new_figure(TITLE, x_label="step", y_label="samples", y_axis_type="log", marks="step")
    noise = drawn.line("step", "noise", source=source, color=theme.LOSS, line_width=2)
    batch = drawn.line("step", "batch", source=source, color=theme.VALIDATION, line_width=1.5, line_dash="dashed")
    dots = drawn.scatter("step", "noise", source=source, color=theme.LOSS, size=4)  # the first of them is no line yet
    theme.add_legend(drawn, [("noise scale, smoothed", [noise, dots]), ("batch size", [batch])])
    tips = [("step", "@step{0}"), ("noise scale", "@noise{0.0} samples"), ("batch size", "@batch{0}")]
    drawn.add_tools(HoverTool(renderers=[noise], tooltips=tips, mode="vline"))
    return theme.finish(drawn)
