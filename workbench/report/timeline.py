"""Timeline of two steps for the report, a typical one and the slowest, drawn like the panel's timeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import timeline
from workbench.report.run_data import RunData


@dataclass(frozen=True, kw_only=True)
class ChosenStep:
    """A step and the reason why it is shown."""

    step: int
    why: str


def chosen_steps(run: RunData) -> list[ChosenStep]:
    """Choose the step nearest to the median time and the slowest step among those with logged phases.

    The first step is left out, as it includes start-up costs.
    """
    logged = np.unique(run.store.table("phases")["step"])
    steps, times = run.metrics["step"], run.metrics["step_time_ms"]
    known = np.isin(steps, logged)
    steps, times = steps[known], times[known]
    if not steps.size:
        return []
    later = np.arange(1, steps.size) if steps.size > 2 else np.arange(steps.size)
    typical = later[np.argmin(np.abs(times[later] - np.median(times[later])))]
    slowest = later[np.argmax(times[later])]
    found = [ChosenStep(step=int(steps[typical]), why=f"a typical step, {times[typical]:.1f} ms")]
    if slowest != typical:
        found.append(ChosenStep(step=int(steps[slowest]), why=f"the slowest step, {times[slowest]:.1f} ms"))
    return found


def columns(run: RunData, step: int) -> Columns:
    """The bars of one step, for the first ``timeline.MOST_RANKS`` ranks."""
    phases = run.store.table("phases")
    taken = (phases["step"] == step) & (phases["rank"] < timeline.MOST_RANKS)
    own = {name: values[taken] for name, values in phases.items()}
    return timeline.bars(own, np.unique(own["rank"]))


def figure(bars: Columns) -> Any:
    """Draw ``columns`` as a Bokeh figure: time within the step on x, one row per rank, one bar per phase."""
    from bokeh.models import ColumnDataSource

    source = ColumnDataSource({n: v.tolist() if v.dtype == object else v for n, v in bars.items()})
    drawn = timeline.figure(source)
    drawn.height = timeline.height(bars)
    drawn.xaxis.axis_label = "ms since the start of the step"
    return drawn
