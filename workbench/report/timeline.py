"""Draws the timelines of a typical step and of the slowest step for the report, like the panel's timeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import timeline
from workbench.report.run_data import RunData
from workbench.report.words import format_milliseconds


@dataclass(frozen=True, kw_only=True)
class ChosenStep:
    """A step and the reason why it is shown, with its time."""

    step: int
    reason: str


def choose_steps(run: RunData) -> list[ChosenStep]:
    """Choose, among the steps with logged phases, the one nearest to the median step time and the slowest one.

    The first of these steps is not considered if there are more than two, because it may include start-up costs.
    """
    logged = np.unique(run.store.table("phases")["step"])
    steps, times = run.metrics["step"], run.metrics["step_time_ms"]
    has_phases = np.isin(steps, logged)
    steps, times = steps[has_phases], times[has_phases]
    if not steps.size:
        return []
    candidates = np.arange(1, steps.size) if steps.size > 2 else np.arange(steps.size)
    typical = candidates[np.argmin(np.abs(times[candidates] - np.median(times[candidates])))]
    slowest = candidates[np.argmax(times[candidates])]
    chosen = [ChosenStep(step=int(steps[typical]), reason=f"a typical step, {format_milliseconds(times[typical])}")]
    if slowest != typical:
        chosen.append(
            ChosenStep(step=int(steps[slowest]), reason=f"the slowest step, {format_milliseconds(times[slowest])}")
        )
    return chosen


def bar_columns(run: RunData, step: int) -> Columns:
    """The columns of the timeline's bars for one step and the first ``timeline.MOST_RANKS`` ranks."""
    phases = run.store.table("phases")
    is_shown = (phases["step"] == step) & (phases["rank"] < timeline.MOST_RANKS)
    shown = {name: values[is_shown] for name, values in phases.items()}
    return timeline.bars(shown, np.unique(shown["rank"]))


def make_figure(bars: Columns) -> Any:
    """Make a Bokeh figure of bars: the time within the step on x, one row per rank, one bar per phase."""
    from bokeh.models import ColumnDataSource

    source = ColumnDataSource({n: v.tolist() if v.dtype == object else v for n, v in bars.items()})
    figure = timeline.figure(source)
    figure.height = timeline.height(bars)
    figure.xaxis.axis_label = "ms since the start of the step"
    return figure
