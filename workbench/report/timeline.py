"""The timeline of chosen steps: a usual one and the slowest, phases as bars per rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.plots import theme
from workbench.report.facts import RunFacts

#: colours of phases that mean the same in every figure
PHASE_COLOURS = {
    "data": "#999933",
    "transfer": "#ddcc77",
    "forward": "#0077bb",
    "backward": "#33bbee",
    "forward_backward": "#0077bb",
    "communication": "#ee3377",
    "overlapped": "#f3a6c0",
    "optimizer": "#009988",
    "bubble": "#bbbbbb",
    "evaluate": "#aa4499",
    "checkpoint": "#cc3311",
    "paused": "#dddddd",
    "monitor": "#ee7733",
}
MOST_RANKS = 32


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


def figure(facts: RunFacts, step: int) -> Any:
    """A Bokeh figure: time within the step across, a row per rank, a bar per phase."""
    from bokeh.models import ColumnDataSource, DataRange1d, FixedTicker, HoverTool

    rows = facts.store.table("phases")
    taken = (rows["step"] == step) & (rows["rank"] < MOST_RANKS)
    phase, rank = rows["phase"][taken].astype(str), rows["rank"][taken].astype(float)
    left, width = rows["start_ms"][taken], rows["duration_ms"][taken]
    y_range = DataRange1d(flipped=True, range_padding=0.05)
    ranks = sorted({int(number) for number in rank})
    height = 90 + 26 * len(ranks)
    drawn = theme.new_figure("", x_label="ms since the step began", y_label="rank", height=height, y_range=y_range)
    renderers = []
    for name in dict.fromkeys(phase.tolist()):
        own = phase == name
        # what hides behind compute lies in the lower part of the row
        low, high = (0.12, 0.42) if name == "overlapped" else (-0.42, 0.12) if "overlapped" in phase else (-0.42, 0.42)
        source = ColumnDataSource(
            {
                "left": left[own],
                "right": left[own] + width[own],
                "top": rank[own] + low,
                "bottom": rank[own] + high,
                "rank": rank[own],
                "phase": phase[own].tolist(),
                "micro": rows["micro_batch"][taken][own].astype(float),
                "ms": width[own],
            }
        )
        colour = PHASE_COLOURS.get(name, "#888888")
        bars = drawn.quad(
            left="left", right="right", top="top", bottom="bottom", source=source, color=colour, line_color=None
        )
        renderers.append((name, [bars]))
    drawn.yaxis.ticker = FixedTicker(ticks=ranks)
    drawn.ygrid.visible = False
    theme.add_legend(drawn, renderers)
    tips = [("rank", "@rank{0}"), ("phase", "@phase"), ("micro-batch", "@micro{0}"), ("ms", "@ms{0.00}")]
    drawn.add_tools(HoverTool(tooltips=tips))
    return drawn
