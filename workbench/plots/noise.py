"""Gradient noise scale over steps: the batch size up to which a larger batch makes training more efficient.

It is computed from squared gradient norms at two batch sizes (McCandlish et al. 2018, "An Empirical Model of
Large-Batch Training", appendix A.1): with b samples per replica and B in total, |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B -
b) and S = (|G_b|^2 - |G_B|^2) / (1/b - 1/B). The noise scale is S / |G|^2; both are averaged over steps before the
division.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "noise"
TITLE = "Gradient noise scale"
TAB = "gradients"
AXIS = "step"
EMPTY = "The noise scale needs at least two data-parallel ranks."


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step, noise (in samples, smoothed; NaN where it is not positive), batch (the run's global batch size)."""
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
    """Keep fewer rows, including the extremes."""
    return rows.thin(columns, of=["noise"])


def squared_norms(table: Columns, mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared gradient norms over all layers, from the rows of ``combine_columns``.

    Returns the steps that have both norms, the mean over replicas of |local|^2, and |reduced|^2.
    """
    none = np.empty(0)
    if mesh.dp < 2 or not table["step"].size:
        return none, none, none
    is_local = table["scope"] == "local"
    of_both = set(table["layer"][is_local].tolist())
    is_reduced = ~is_local & np.array([layer in of_both for layer in table["layer"].tolist()])
    first = rows.begins(table["step"], table["scope"], table["layer"], table["rank"] // (mesh.tp * mesh.pp))
    local, reduced = np.flatnonzero(is_local & first), np.flatnonzero(is_reduced & first)
    reduced = reduced[rows.begins(table["step"][reduced], table["layer"][reduced])]
    replica = table["rank"][local] // (mesh.tp * mesh.pp)
    small_at, small = rows.table_of(table["step"][local], replica, table["norm"][local] ** 2, mesh.dp)
    big_at, big = rows.table_of(table["step"][reduced], np.zeros_like(reduced), table["norm"][reduced] ** 2, 1)
    both, in_small, in_big = np.intersect1d(small_at, big_at, return_indices=True)
    small = small[:, in_small]
    with np.errstate(invalid="ignore"):
        return both, np.nansum(small, axis=0) / (~np.isnan(small)).sum(axis=0), big[0, in_big]


def unbiased(small: np.ndarray, big: np.ndarray, b: float, batch: float) -> tuple[np.ndarray, np.ndarray]:
    """Unbiased estimates of |G|^2 and of S, the trace of the per-sample gradient covariance (see the module).

    ``small`` and ``big``: squared norms at the batch sizes ``b`` and ``batch``. NaN if b is not below ``batch``.
    """
    if b >= batch:
        return np.full(small.size, math.nan), np.full(small.size, math.nan)
    return (batch * big - b * small) / (batch - b), (small - big) / (1 / b - 1 / batch)


def figure(source: ColumnDataSource) -> Figure:
    """Draw noise scale and batch size as lines over steps."""
    from bokeh.models import HoverTool

    drawn: Any = theme.new_figure(TITLE, x_label="step", y_label="samples", y_axis_type="log", marks="step")
    noise = drawn.line("step", "noise", source=source, color=theme.LOSS, line_width=2)
    batch = drawn.line("step", "batch", source=source, color=theme.VALIDATION, line_width=1.5, line_dash="dashed")
    dots = drawn.scatter("step", "noise", source=source, color=theme.LOSS, size=4)  # a single point gives no line
    theme.add_legend(drawn, [("noise scale, smoothed", [noise, dots]), ("batch size", [batch])])
    tips = [("step", "@step{0}"), ("noise scale", "@noise{0.0} samples"), ("batch size", "@batch{0}")]
    drawn.add_tools(HoverTool(renderers=[noise], tooltips=tips, mode="vline"))
    return theme.finish(drawn)
