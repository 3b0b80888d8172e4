"""Tokens per second and device over steps; samples per second if the run's samples have no tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workbench.core.columns import Columns
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.plots.browser_numbers import hover
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "throughput"
TITLE = "Throughput"
TAB = "overview"
AXIS = "step"
EMPTY = "No completed step."


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step, tokens or samples (per second and device), smooth (its moving average), step_time_ms, data_wait_ms."""
    steps, before = cursor or (None, math.nan)
    metrics, steps = rows.metrics_since(store, steps)
    named = {"step": "step", rows.unit(store): "tps", "step_time_ms": "step_time_ms", "data_wait_ms": "data_wait_ms"}
    out = {name: metrics[column].astype(float) for name, column in named.items()}
    out["smooth"] = rows.smooth(out[rows.unit(store)], before)
    if out["smooth"].size:
        before = float(out["smooth"][-1])
    return (thin(out) if cursor is None else out), (steps, before)


def thin(columns: Columns) -> Columns:
    """Keep fewer rows, including the extremes."""
    return rows.thin(columns, of=[unit_of(columns)])


def unit_of(columns: Mapping[str, Any]) -> str:
    """The unit that these columns count: "tokens" or "samples"."""
    return "samples" if "samples" in columns else "tokens"


def figure(source: ColumnDataSource) -> Figure:
    """Draw a line over steps; y starts at zero."""
    from bokeh.models import DataRange1d

    unit = unit_of(source.data)
    drawn = theme.new_figure(
        TITLE,
        x_label="step",
        y_label=f"{unit} / s / device",
        y_range=DataRange1d(start=0, range_padding=0.1),
        marks="step",
    )
    each = drawn.line("step", unit, source=source, color=theme.EACH_THROUGHPUT, line_width=1)
    average = drawn.line("step", "smooth", source=source, color=theme.THROUGHPUT, line_width=2)
    theme.add_legend(drawn, [("each step", [each]), ("smoothed", [average])])
    tips = [
        ("step", "@step{0}"),
        (f"{unit} / s / device", f"@{unit}{{number}}"),
        ("step time", "@step_time_ms{milliseconds}"),
        ("waiting for data", "@data_wait_ms{milliseconds}"),
    ]
    drawn.add_tools(hover(tips, renderers=[average], mode="vline"))
    return theme.finish(drawn)
