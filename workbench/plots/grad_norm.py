"""Global gradient norm before clipping over steps, on a log scale, with the clipping threshold and spikes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.frameworks import OBSERVED
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.plots.browser_numbers import hover
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "grad_norm"
TITLE = "Gradient norm (global L2, before clipping)"
TAB = "overview"
AXIS = "step"
EMPTY = "No completed step."


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step, norm (NaN where it is not positive), clip (clipping threshold, NaN: off), spike_at and spike (step and norm
    of spikes). Steps of an observed loop whose norm was not computed are left out."""
    steps, event_row, waiting = cursor or (None, 0, [])
    row = steps[0] if steps else 0
    metrics, steps = rows.metrics_since(store, steps)
    events, event_row = rows.told_since(store, event_row)
    if store.spec.plan.framework == OBSERVED:
        metrics = {name: values[~np.isnan(metrics["grad_norm"])] for name, values in metrics.items()}
    step = metrics["step"].astype(float)
    norm = np.where(metrics["grad_norm"] > 0, metrics["grad_norm"].astype(float), math.nan)
    spike_at, spike, waiting = rows.marked(step, waiting + rows.spikes(events, NAME))
    out = {"step": step, "norm": norm, "clip": _clip(store, row, step), "spike_at": spike_at, "spike": spike}
    return (thin(out) if cursor is None else out), (steps, event_row, waiting)


def thin(columns: Columns) -> Columns:
    """Keep fewer rows, including every spike."""
    return rows.thin(columns, of=["norm"], keep=~np.isnan(columns["spike"]))


def _clip(store: Store, row: int, step: np.ndarray) -> np.ndarray:
    """Clipping threshold at each step; NaN where clipping is off."""
    raw, _ = rows.since(store, "steps", row)
    order = np.argsort(raw["step"], kind="stable")
    if not step.size:
        return np.empty(0)
    place = np.searchsorted(raw["step"][order], step)
    clip = raw["clip"][order][place]
    return np.where(clip > 0, clip, math.nan)


def figure(source: ColumnDataSource) -> Figure:
    """Draw norm and threshold as lines over steps, with spikes."""
    drawn: Any = theme.new_figure(TITLE, x_label="step", y_label="norm", y_axis_type="log", marks="step")
    line = drawn.line("step", "norm", source=source, color=theme.LOSS, line_width=1.6)
    clip = drawn.line("step", "clip", source=source, color=theme.VALIDATION, line_width=1.5, line_dash="dashed")
    spikes = theme.add_spikes(drawn, source)
    theme.add_legend(drawn, [("norm", [line]), ("clip", [clip]), ("spike", [spikes])])
    tips = [("step", "@step{0}"), ("norm", "@norm{number}"), ("clip", "@clip{number}")]
    drawn.add_tools(hover(tips, renderers=[line], mode="vline"))
    return theme.finish(drawn)
