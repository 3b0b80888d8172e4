"""Figures of plans: what a rank holds, and what a step takes, as stacked bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from workbench.planner.forecast import Forecast
from workbench.plots import theme
from workbench.plots.browser_numbers import hover, tick_formatter

#: part of a rank's memory -> its name and colour
_MEMORY = {
    "parameters": ("parameters", "#0077bb"),
    "gradients": ("gradients", "#ee7733"),
    "state": ("optimizer state", "#009988"),
    "activations": ("activations", "#33bbee"),
    "buffers": ("buffers", "#bbbbbb"),
}
#: part of a step -> its name and colour, those of the phases
_STEP = {
    "compute": ("computation", theme.PHASES["backward"]),
    "bubble": ("bubble", theme.PHASES["bubble"]),
    "communication": ("communication", theme.PHASES["communication"]),
    "update": ("optimizer", theme.PHASES["optimizer"]),
}
#: bars that are drawn; the others are in the table
MOST_BARS = 16
_BAR_HEIGHT = 26
#: the limit of a rank is drawn where it is at most so many times the largest bar
_LIMIT_IS_NEAR = 1.5

#: names and colours of the parts of a bar
_Parts = Sequence[tuple[str, str]]


def drawn(found: Sequence[Forecast], limit: float) -> list[Any]:
    """Memory of the rank that holds most and, where times are known, the estimated step: a bar per plan, the best on
    top."""
    from bokeh.models.annotations import Span

    shown = list(found[:MOST_BARS])
    if not shown:
        return []
    memory = [[getattr(item.largest, part) for part in _MEMORY] for item in shown]
    names = [item.name for item in shown]
    drawings = [_bars("Memory per rank", "bytes", names, memory, list(_MEMORY.values()))]
    if math.isfinite(limit) and limit <= _LIMIT_IS_NEAR * max(item.largest.total for item in shown):
        drawings[0].add_layout(Span(location=limit, dimension="height", line_color=theme.BAD, line_dash="dashed"))
    times = [item.time for item in shown]
    if all(time is not None for time in times):
        rows = [[1e3 * getattr(time, part) for part in _STEP] for time in times]
        drawings.append(_bars("Estimated step", "milliseconds", names, rows, list(_STEP.values())))
    return drawings


def _bars(title: str, unit: str, names: Sequence[str], rows: Sequence[Sequence[float]], parts: _Parts) -> Any:
    from bokeh.models import ColumnDataSource, FactorRange

    height = 110 + _BAR_HEIGHT * len(names)
    axis = "per rank" if unit == "bytes" else "time per step"
    figure = theme.new_figure(
        title, x_label=axis, y_label="", height=height, y_range=FactorRange(factors=names[::-1]), brush=True
    )
    figure.xaxis.formatter = tick_formatter(unit)
    figure.x_range.start = 0
    figure.ygrid.grid_line_color = None
    ends = [0.0] * len(names)
    legend = []
    for place, (name, colour) in enumerate(parts):
        values = [0.0 if math.isnan(row[place]) else row[place] for row in rows]
        left, ends = ends, [end + value for end, value in zip(ends, values, strict=True)]
        if not any(values):
            continue
        data = {"plan": names, "left": left, "right": ends, "value": values, "part": [name] * len(names)}
        source = ColumnDataSource(data)
        bar = figure.hbar(
            y="plan", left="left", right="right", height=0.7, source=source, fill_color=colour, line_color=None
        )
        figure.add_tools(hover([("plan", "@plan"), ("part", "@part"), ("size", f"@value{{{unit}}}")], renderers=[bar]))
        legend.append((name, [bar]))
    theme.add_legend(figure, legend)
    return theme.finish(figure)


def picture(found: Sequence[Forecast], limit: float) -> bytes:
    """A PNG of the same figures, for viewers without scripts."""
    from workbench.plots.still.png import Pane, side_by_side

    panes = [Pane(figure=figure, title=str(figure.title.text)) for figure in drawn(found, limit)]
    return side_by_side(panes, height=max(260, 110 + _BAR_HEIGHT * min(MOST_BARS, len(found))))
