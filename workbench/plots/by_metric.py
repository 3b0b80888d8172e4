"""Metrics on the validation data, one line each; shared by the figures ``validation`` and ``metrics``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.numbers import is_share
from workbench.core.records import EventKind
from workbench.events.decode import as_number, of_kind
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

#: largest number of metrics that are drawn, in the order in which they came
MOST = 12
_PREFIX = "metric "
_COLOURS = (theme.VALIDATION, *(colour for colour in theme.RANK_COLOURS if colour != theme.VALIDATION))

#: metric -> (step, value) in order
Found = dict[str, list[tuple[float, float]]]


def columns(store: Store, cursor: Cursor | None, *, shares: bool) -> tuple[Columns, Cursor]:
    """step, and one column per metric: NaN where it was not measured. The loss has a figure of its own.

    ``shares``: the metrics that are stated in percent (``core.numbers.is_share``); else the others.
    """
    since, known = cursor or (0, {})
    events, after = rows.told_since(store, since)
    found: Found = {name: list(values) for name, values in known.items()}
    is_new = cursor is None
    for event in of_kind(events, EventKind.VALIDATION):
        value = as_number(event.value)
        is_listed = event.name in found or len(found) < MOST
        if event.name != "loss" and is_listed and not math.isnan(value):
            found.setdefault(event.name, []).append((float(event.step), value))
            is_new = True
    out = _table(
        {name: values for name, values in found.items() if is_share(name, [value for _, value in values]) == shares},
        100 if shares else 1,
    )
    return (out if is_new else {name: column[:0] for name, column in out.items()}), (after, found)


def _table(found: Found, factor: float) -> Columns:
    steps = np.array(sorted({step for values in found.values() for step, _ in values}))
    table: dict[str, Any] = {"step": steps}
    for name, values in found.items():
        column = table[_PREFIX + name] = np.full(steps.size, math.nan)
        for step, value in values:
            column[np.searchsorted(steps, step)] = factor * value
    return table


def draw(source: ColumnDataSource, title: str, *, unit: str = "") -> Figure:
    """Draw the evaluations as points on a line for each metric."""
    from bokeh.models import DataRange1d, HoverTool

    names = [name.removeprefix(_PREFIX) for name in source.data if name != "step"]
    label = (names[0] if len(names) == 1 else "value") + (f" ({unit})" if unit else "")
    y_range = DataRange1d(range_padding=0.15)
    drawn = theme.new_figure(title, x_label="step", y_label=label, height=320, y_range=y_range, marks="step")
    entries: list[tuple[str, list[Any]]] = []
    for place, name in enumerate(names):
        column = _PREFIX + name
        colour = _COLOURS[place % len(_COLOURS)]
        line = drawn.line("step", column, source=source, color=colour, line_width=2)
        points = drawn.scatter("step", column, source=source, color=colour, size=8, line_color=None)
        number = f"@{{{column}}}{{0.0}} %" if unit == "%" else f"@{{{column}}}{{0.[0000]}}"
        drawn.add_tools(HoverTool(renderers=[points], tooltips=[("step", "@step{0}"), (name, number)]))
        entries.append((name, [line, points]))
    if len(entries) > 1:
        theme.add_legend(drawn, entries)
    return theme.finish(drawn)
