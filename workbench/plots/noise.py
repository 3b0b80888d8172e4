"""Gradient noise scale over steps: the batch size up to which a larger batch makes training more efficient.

It is computed from squared gradient norms at two batch sizes (McCandlish et al. 2018, "An Empirical Model of
Large-Batch Training", appendix A.1): with b samples per replica and B in total, |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B -
b) and S = (|G_b|^2 - |G_B|^2) / (1/b - 1/B). The noise scale is S / |G|^2; both are averaged over steps before the
division (``telemetry.running``). The band is the interval of that quotient (``running.interval_of_ratio``), from the
spread of the estimates of single steps. It has no upper end while the noise drowns the gradient.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh
from workbench.core.numbers import number
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.plots.browser_numbers import hover
from workbench.telemetry import row_views as rows
from workbench.telemetry import running
from workbench.telemetry.derive import batch_of
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "noise"
TITLE = "Gradient noise scale"
TAB = "gradients"
AXIS = "step"
EMPTY = "The noise scale needs at least two data-parallel ranks."
#: the band is drawn at most this many times above or below noise scale and batch size
_FURTHEST = 4.0


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step, noise (in samples, averaged; NaN where it is not positive), low and high (the band, as far as it is drawn),
    interval (the same in words), batch (the run's global batch size)."""
    steps, before = cursor or (None, None)
    table, _, steps = rows.combined(store, steps)
    at, small, big = squared_norms(table, store.mesh)
    batch = float(store.spec.batch_size or batch_of(store.table("events"))[0])
    true_sq, variance = unbiased(small, big, batch / store.mesh.dp, batch)
    products = np.stack([variance, true_sq, variance**2, variance * true_sq, true_sq**2])
    (variance, true_sq, *squares), shares, before = running.follow(products, before)
    low, high = running.interval_of_ratio(variance, true_sq, (squares[0], squares[1], squares[2]), shares[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = variance / true_sq
    noise = np.where((noise > 0) & (true_sq > 0), noise, math.nan)
    low, high = (np.where(np.isnan(true_sq), math.nan, end) for end in (low, high))
    shown = np.fmax(np.fmax(noise, batch), low), np.fmin(noise, batch)
    out = {
        "step": at.astype(float),
        "noise": noise,
        "low": np.fmax(low, shown[1] / _FURTHEST),
        "high": np.fmin(high, shown[0] * _FURTHEST),
        "interval": np.array([_words(*ends) for ends in zip(low, high, strict=True)], dtype=object),
        "batch": np.full(at.size, batch),
    }
    return (thin(out) if cursor is None else out), (steps, before)


def _words(low: float, high: float) -> str:
    """``40 to 150 samples``; ``above 40 samples`` where there is no upper end."""
    if math.isnan(low) or (not low and math.isinf(high)):
        return "not known yet"
    return f"above {number(low, 3)} samples" if math.isinf(high) else f"{number(low, 3)} to {number(high, 3)} samples"


def thin(columns: Columns) -> Columns:
    """Keep fewer rows, including the extremes."""
    return rows.thin(columns, of=["noise", "low", "high"])


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
    first = rows.begins(table["step"], table["scope"], table["layer"], table["rank"] // mesh.replica_size)
    local, reduced = np.flatnonzero(is_local & first), np.flatnonzero(is_reduced & first)
    reduced = reduced[rows.begins(table["step"][reduced], table["layer"][reduced])]
    replica = table["rank"][local] // mesh.replica_size
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
    """Draw noise scale, its interval and the batch size over steps."""
    drawn: Any = theme.new_figure(TITLE, x_label="step", y_label="samples", y_axis_type="log", marks="step")
    band = drawn.varea("step", "low", "high", source=source, color=theme.SPREAD, alpha=0.2)
    noise = drawn.line("step", "noise", source=source, color=theme.LOSS, line_width=2)
    batch = drawn.line("step", "batch", source=source, color=theme.VALIDATION, line_width=1.5, line_dash="dashed")
    dots = drawn.scatter("step", "noise", source=source, color=theme.LOSS, size=4)  # a single point gives no line
    likely = f"{100 * running.CONFIDENCE:.0f} % interval"
    theme.add_legend(drawn, [("noise scale, averaged", [noise, dots]), (likely, [band]), ("batch size", [batch])])
    tips = [
        ("step", "@step{0}"),
        ("noise scale", "@noise{number} samples"),
        (likely, "@interval"),
        ("batch size", "@batch{0}"),
    ]
    drawn.add_tools(hover(tips, renderers=[dots], mode="vline"))
    return theme.finish(drawn)
