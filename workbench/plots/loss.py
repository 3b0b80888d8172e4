"""Training loss (each step, smoothed, and spikes) and validation loss over steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.plots.browser_numbers import hover
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "loss"
TITLE = "Loss"
TAB = "overview"
AXIS = "step"
EMPTY = "No completed step."


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step, loss, smooth (moving average), at and measured (step and value of a validation), after and since (step and
    value of the one before it), spike_at and spike (step and loss of a spike).

    A validation that arrives after the row of its step was returned is put on a later row, or on a repeated last row.
    """
    steps, event_row, before, known, last, waiting = cursor or (None, 0, math.nan, (math.nan, math.nan), None, [])
    metrics, steps = rows.metrics_since(store, steps)
    events, event_row = rows.told_since(store, event_row)
    step, loss = metrics["step"].astype(float), metrics["loss"].astype(float)
    average = rows.smooth(loss, before)
    validated = rows.validations(events, NAME)
    extra = max(0, len(validated) - step.size)
    if extra and (step.size or last):
        repeat: Any = (step[-1], loss[-1], average[-1]) if step.size else last
        step, loss, average = (np.append(v, [r] * extra) for v, r in zip((step, loss, average), repeat, strict=True))
    at, measured, after, since = np.full((4, step.size), math.nan)
    for index, found in _places(step, validated):
        (at[index], measured[index]), (after[index], since[index]) = found, known
        known = found
    spike_at, spike, waiting = rows.marked(step, waiting + rows.spikes(events, NAME))
    out = {"step": step, "loss": loss, "smooth": average, "at": at, "measured": measured}
    out |= {"after": after, "since": since, "spike_at": spike_at, "spike": spike}
    if step.size:
        before, last = float(average[-1]), (step[-1], loss[-1], average[-1])
    return (thin(out) if cursor is None else out), (steps, event_row, before, known, last, waiting)


def thin(columns: Columns) -> Columns:
    """Keep fewer rows, including every validation and spike."""
    return rows.thin(columns, of=["loss"], keep=~np.isnan(columns["measured"]) | ~np.isnan(columns["spike"]))


def _places(step: np.ndarray, validated: list[tuple[float, float]]) -> list[tuple[int, tuple[float, float]]]:
    """Choose a row for each validation: that of its step, or the nearest later row without one."""
    places: list[tuple[int, tuple[float, float]]] = []
    free = 0
    for left, (where, value) in zip(range(len(validated) - 1, -1, -1), validated, strict=True):
        index = max(free, min(int(np.searchsorted(step, where)), step.size - 1 - left))
        if index < step.size:
            places.append((index, (where, value)))
        free = index + 1
    return places


def figure(source: ColumnDataSource) -> Figure:
    """Draw the losses as lines over steps, validations as joined points, and spikes."""
    drawn = theme.new_figure(TITLE, x_label="step", y_label="loss", marks="step")
    each = drawn.line("step", "loss", source=source, color=theme.EACH_LOSS, line_width=1)
    average = drawn.line("step", "smooth", source=source, color=theme.LOSS, line_width=2)
    joined = drawn.segment("after", "since", "at", "measured", source=source, color=theme.VALIDATION, line_width=2)
    points = drawn.scatter("at", "measured", source=source, color=theme.VALIDATION, size=8, line_color=None)
    spikes = theme.add_spikes(drawn, source)
    legend = [("each step", [each]), ("smoothed", [average]), ("validation", [joined, points]), ("spike", [spikes])]
    theme.add_legend(drawn, legend)
    train: list[Any] = [("step", "@step{0}"), ("loss", "@loss{number}"), ("smoothed", "@smooth{number}")]
    drawn.add_tools(
        hover(train, renderers=[average], mode="vline"),
        hover([("step", "@at{0}"), ("validation loss", "@measured{number}")], renderers=[points]),
    )
    return theme.finish(drawn)
