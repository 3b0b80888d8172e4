"""The timeline of chosen steps: a usual one and the slowest, drawn as the panel's timeline draws the last ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import timeline
from workbench.report.run_data import RunFacts


@dataclass(frozen=True, kw_only=True)
class ChosenStep:
    """A step, and why it is shown."""

    step: int
    why: str


def chosen_steps(facts: RunFacts) -> list[ChosenStep]:
    """Of the steps whose phases were logged: the one nearest to the median time, and the slowest (the first aside)."""
    logged = np.unique(facts.store.table("phases")["step"])
    steps, times = facts.metrics["step"], facts.metrics["step_time_ms"]
    known = np.isin(steps, logged)
    steps, times = steps[known], times[known]
    if not steps.size:
        return []
    later = np.arange(1, steps.size) if steps.size > 2 else np.arange(steps.size)
    usual = later[np.argmin(np.abs(times[later] - np.median(times[later])))]
    slowest = later[np.argmax(times[later])]
    found = [ChosenStep(step=int(steps[usual]), why=f"a usual step, {times[usual]:.1f} ms")]
    if slowest != usual:
        found.append(ChosenStep(step=int(steps[slowest]), why=f"the slowest step, {times[slowest]:.1f} ms"))
    return found


def columns(facts: RunFacts, step: int) -> Columns:
    """The bars of one step, of the first ranks that a figure has room for."""
    phases = facts.store.table("phases")
    taken = (phases["step"] == step) & (phases["rank"] < timeline.MOST_RANKS)
    own = {name: values[taken] for name, values in phases.items()}
    return timeline.bars(own, np.unique(own["rank"]))


def figure(bars: Columns) -> Any:
    """A Bokeh figure of ``columns``: time within the step across, a row per rank, a bar per phase."""
    from bokeh.models import ColumnDataSource

    source = ColumnDataSource({n: v.tolist() if v.dtype == object else v for n, v in bars.items()})
    drawn = timeline.figure(source)
    drawn.height = timeline.height(bars)
    drawn.xaxis.axis_label = "ms since the step began"
    return drawn
