"""Curves of what the cell logged; shared by the figures ``logged``, ``logged_second`` and ``logged_third``.

A figure has one y axis, so names are grouped by the size of their first value. The group of a name does not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.plots.browser_numbers import hover
from workbench.telemetry import row_views as rows
from workbench.telemetry.logged.curves import ALL_RANKS, Curve, curves
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

#: largest number of curves in a figure, in the order in which they came
MOST = 12
PERIOD_S = 2.0
#: ranks with a curve each where ranks are not combined; more are shown as lowest, median and highest
_MOST_RANKS = 6
GROUPS = 3
#: values of one figure are within this factor of its first one
_SIZE = 30.0
_PREFIX = "value "
#: characters of a name in the legend
_LONGEST = 52
_HEIGHT_PX, _LINE_PX = 250, 20


class _Known:
    """Curves so far: label -> steps and values; and the group of each name."""

    def __init__(self) -> None:
        self.steps: rows.StepCursor | None = None
        self.points: dict[str, dict[float, float]] = {}
        self.groups: dict[str, int] = {}
        self.sizes: list[float] = []

    def take(self, found: list[Curve]) -> None:
        by_name: dict[str, list[Curve]] = {}
        for curve in found:
            by_name.setdefault(curve.name, []).append(curve)
        for name, own in by_name.items():
            if name not in self.groups:
                self.groups[name] = self._group_of(own[0].values)
            for label, steps, values in _drawn(name, own):
                self.points.setdefault(label, {}).update(zip(steps, values, strict=True))

    def _group_of(self, values: np.ndarray) -> int:
        sizes = np.abs(values[np.isfinite(values) & (values != 0)])
        if not sizes.size:
            return 0
        near = [abs(math.log(float(sizes[0]) / size)) for size in self.sizes]
        if near and min(near) <= math.log(_SIZE):
            return near.index(min(near))
        if len(self.sizes) < GROUPS:
            self.sizes.append(float(sizes[0]))
            return len(self.sizes) - 1
        return near.index(min(near))


def _drawn(name: str, own: list[Curve]) -> list[tuple[str, list[float], list[float]]]:
    if own[0].rank == ALL_RANKS or len(own) <= _MOST_RANKS:
        return [(curve.label, curve.steps.tolist(), curve.values.tolist()) for curve in own]
    steps = np.unique(np.concatenate([curve.steps for curve in own]))
    table = np.full((len(own), steps.size), math.nan)
    for row, curve in enumerate(own):
        table[row, np.searchsorted(steps, curve.steps)] = curve.values
    table[:, np.isnan(table).all(axis=0)] = math.inf  # not a number on any rank: no point, see below
    parts = np.nanquantile(table, (0.0, 0.5, 1.0), axis=0)
    parts[np.isinf(parts)] = math.nan
    labels = (f"{name}, lowest rank", f"{name}, median rank", f"{name}, highest rank")
    return [(label, steps.tolist(), part.tolist()) for label, part in zip(labels, parts, strict=True)]


def columns(store: Store, cursor: Cursor | None, *, group: int) -> tuple[Columns, Cursor]:
    """step, and one column per curve of the group: NaN in steps without a value."""
    known = cursor or _Known()
    before = known.steps
    news, known.steps = rows.whole_steps(store, "values", before)
    key = ("logged", before, known.steps)
    known.take(rows.memo(store, key, lambda: curves(news, store.mesh)))
    shown = [label for label in known.points if known.groups[_name_of(label, known.groups)] == group][:MOST]
    steps = np.array(sorted({step for label in shown for step in known.points[label]}), dtype=float)
    table: dict[str, Any] = {"step": steps}
    for label in shown:
        points = known.points[label]
        column = table[_PREFIX + label] = np.full(steps.size, math.nan)
        column[np.searchsorted(steps, list(points))] = list(points.values())
    out = rows.thin(table)
    return (out if cursor is None or news["step"].size else {name: column[:0] for name, column in out.items()}), known


def _name_of(label: str, names: dict[str, int]) -> str:
    """The logged name that a label is of."""
    if label in names:
        return label
    return label.rpartition("/rank ")[0] if "/rank " in label else label.rpartition(", ")[0]


def _names(columns: Mapping[str, Any]) -> list[str]:
    return [name.removeprefix(_PREFIX) for name in columns if name != "step"]


def _short(name: str) -> str:
    """``name`` as the legend has it; the curve's tooltip has all of it."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[-(_LONGEST // 2 - 1) :]}"


def height(columns: Mapping[str, Any]) -> int:
    """Pixels of a figure of ``columns``: more for a legend of more than two lines."""
    lines = theme.legend_lines([_short(name) for name in _names(columns)])
    return _HEIGHT_PX + _LINE_PX * max(0, lines - 2)


def draw(source: ColumnDataSource, title: str) -> Figure:
    """Draw a line per curve, with points where steps are few or far between."""
    names = _names(source.data)
    drawn = theme.new_figure(
        title,
        x_label="step",
        y_label=names[0] if len(names) == 1 else "value",
        height=height(source.data),
        marks="step",
    )
    entries: list[tuple[str, list[Any]]] = []
    for place, name in enumerate(names):
        column = _PREFIX + name
        colour = theme.RANK_COLOURS[place % len(theme.RANK_COLOURS)]
        line = drawn.line("step", column, source=source, color=colour, line_width=2)
        points = drawn.scatter("step", column, source=source, color=colour, size=4, line_color=None)
        drawn.add_tools(hover([("step", "@step{0}"), (name, f"@{{{column}}}{{number}}")], renderers=[points]))
        entries.append((_short(name), [line, points]))
    if len(entries) > 1:
        theme.add_legend(drawn, entries)
    return theme.finish(drawn)
