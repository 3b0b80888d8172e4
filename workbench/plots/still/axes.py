"""Ranges, ticks and grid of a Bokeh figure on matplotlib axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.core.property.descriptors import UnsetValueError
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MultipleLocator

from workbench.core.numbers import decimal_bytes, milliseconds, number
from workbench.plots import theme
from workbench.plots.still.canvas import Box, Canvas, shortened
from workbench.plots.still.rows import GlyphRows, as_numbers, optional

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def factors(axis_range: Any) -> tuple[str, ...]:
    """The names along a categorical axis, () for any other."""
    return tuple(str(factor) for factor in optional(axis_range, "factors") or ())


def set_ranges(pane: Axes, figure: Any) -> None:
    """Scales and limits: the bounds that the figure gives, else what its data reach, with the range's padding."""
    for axis, axis_range, scale in (("x", figure.x_range, figure.x_scale), ("y", figure.y_range, figure.y_scale)):
        log = type(scale).__name__ == "LogScale"
        known = getattr(pane.dataLim, f"interval{axis}"), float(getattr(pane.dataLim, f"minpos{axis}"))
        low, high = _limits(axis_range, known[0], known[1], log)
        if log:
            (pane.set_xscale if axis == "x" else pane.set_yscale)("log")
        (pane.set_xlim if axis == "x" else pane.set_ylim)(low, high)


def _limits(axis_range: Any, reached: Sequence[float], least_positive: float, log: bool) -> tuple[float, float]:
    """From the start to the end of an axis; the start is the greater where the axis is flipped."""
    if names := factors(axis_range):
        return 0.0, float(len(names))
    low, high = float(min(reached)), float(max(reached))
    if log:
        low = max(low, least_positive)
    if not (math.isfinite(low) and math.isfinite(high)) or (log and low <= 0):
        low, high = (1.0, 10.0) if log else (0.0, 1.0)
    padding = optional(axis_range, "range_padding")
    padding = float(padding) if isinstance(padding, (int, float)) else 0.0
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5))
    elif log:
        share = (high / low) ** (padding / 2)
        low, high = low / share, high * share
    else:
        low, high = low - padding / 2 * (high - low), high + padding / 2 * (high - low)
    start, end = _bound(axis_range, "start"), _bound(axis_range, "end")
    low, high = low if start is None else start, high if end is None else end
    if low == high or (log and min(low, high) <= 0):
        low, high = (1e-3, 1.0) if log else (low, low + 1.0)
    return (high, low) if optional(axis_range, "flipped") else (low, high)


def _bound(axis_range: Any, name: str) -> float | None:
    try:
        value = getattr(axis_range, name)
    except UnsetValueError:
        return None
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if numeric and math.isfinite(value) else None


def draw_ticks(canvas: Canvas, pane: Axes, box: Box, figure: Any, row_names: dict[float, str]) -> None:
    """The texts of the ticks of axes over ``box``, as many as fit, and the lines of the grid."""
    muted = canvas.ink.muted
    x_ticks = _ticks(figure.xaxis[0], pane.get_xlim(), factors(figure.x_range), 8 if box.width < 700 else 14)
    for at, (_, text) in zip(_places(pane, box, x_ticks, 0), x_ticks, strict=True):
        canvas.text(at, box.bottom + 15, shortened(text), colour=muted, ha="center")
    y_names = factors(figure.y_range)
    if row_names:
        stride = max(1, math.ceil(len(row_names) / max(1, round(box.height / 13))))
        y_ticks = sorted(row_names.items())[::stride]
    else:
        y_ticks = _ticks(figure.yaxis[0], pane.get_ylim(), y_names, 40 if y_names else 6)
    places = _places(pane, box, y_ticks, 1)
    for at, (_, text) in zip(places, y_ticks, strict=True):
        canvas.text(box.left - 6, at + 4, shortened(text), colour=muted, ha="right")
    if figure.ygrid and figure.ygrid[0].visible and not row_names and not y_names:
        for at in places:
            canvas.add(Line2D([box.left, box.right], [at, at], color=canvas.ink.grid, linewidth=1, zorder=-1))


def _places(pane: Axes, box: Box, ticks: Sequence[tuple[float, str]], axis: int) -> list[float]:
    """Pixels on the canvas of ticks along x (``axis`` 0) or y (1)."""
    points = np.full((len(ticks), 2), 1.0)
    points[:, axis] = [value for value, _ in ticks]
    share = (pane.transScale + pane.transLimits).transform(points)[:, axis]
    found = box.left + share * box.width if axis == 0 else box.bottom - share * box.height
    return [float(place) for place in found]


def _ticks(axis: Any, limits: tuple[float, float], names: tuple[str, ...], most: int) -> list[tuple[float, str]]:
    """Places and texts between the limits. The interval is the one that Bokeh's ticker would choose."""
    low, high = min(limits), max(limits)
    if names:
        stride = max(1, math.ceil(len(names) / most))
        return [(place + 0.5, name) for place, name in list(enumerate(names))[::stride]]
    decades = math.log10(high / low) if type(axis).__name__ == "LogAxis" else 0.0
    if decades >= 1:
        parts = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
        places = np.asarray(LogLocator(subs=parts, numticks=most).tick_values(low, high))
    else:
        if optional(axis.ticker, "min_interval") == 1:  # whole numbers: as many as the figure asks for
            most = int(axis.ticker.desired_num_ticks)
        interval = _interval(axis.ticker, (high - low) / most)
        places = np.asarray(MultipleLocator(interval).tick_values(low, high))
    slack = 1e-9 * (high - low)
    places = places[(places >= low - slack) & (places <= high + slack)]
    return [(float(place), tick_text(axis.formatter, float(place))) for place in places]


def _interval(ticker: Any, least: float) -> float:
    """The smallest multiple of a power of the ticker's base that is at least ``least``: 1, 2 or 5 times 10 by default,
    whole minutes where the base is 60."""
    base = float(optional(ticker, "base") or 10.0)
    mantissas = [float(mantissa) for mantissa in optional(ticker, "mantissas") or (1, 2, 5)]
    least = max(least, float(optional(ticker, "min_interval") or 0), 1e-300)
    power = base ** math.floor(math.log(least, base))
    wanted = (mantissa * power * factor for factor in (1.0, base) for mantissa in mantissas)
    return next((interval for interval in wanted if interval >= least * 0.999), power * base)


def tick_text(formatter: Any, value: float) -> str:
    """A number at an axis as the figure's formatter means it: as a power of two, a time or a percentage."""
    if isinstance(formatter, str):  # a colour bar may have "auto"
        return plain(value)
    written = {"milliseconds": milliseconds, "bytes": decimal_bytes}
    for tag in formatter.tags:
        if tag in written:
            return written[str(tag)](value)
    if theme.POWER_OF_TWO in formatter.tags:
        return f"2{plain(value).translate(_RAISED)}"
    wanted = optional(formatter, "format")
    if wanted == "00:00:00":
        return elapsed(value)
    if isinstance(wanted, str) and wanted.endswith("%"):
        return f"{100 * value:.2g}%" if value < 1 else f"{100 * value:.0f}%"
    return plain(value)


def plain(value: float) -> str:
    """``12000`` -> ``12,000``, ``0.000012`` -> ``1.2e-5``: as many digits as a round number has."""
    return number(value, 9)


def elapsed(seconds: float) -> str:
    """``3725`` -> ``1:02:05``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def axis_label(axis: Any) -> str:
    """The label of a Bokeh axis, "" when it has none."""
    return str(axis.axis_label or "").strip()


def row_names(figure: Any, glyphs: Sequence[GlyphRows], longest: int) -> dict[float, str]:
    """Names of rows by their place, of a figure that reads them from its data in the browser: the columns ``row`` and
    ``layer``, ``label``, ``name`` or ``rank``. Of a name that is too long the end is kept."""
    if type(figure.yaxis[0].formatter).__name__ != "CustomJSTickFormatter":
        return {}
    for rows in glyphs:
        places = rows.columns.get("row")
        names = next((rows.columns[n] for n in ("layer", "label", "name", "rank") if n in rows.columns), None)
        if places is not None and names is not None:
            return dict(zip(as_numbers(places).tolist(), (_row_name(name, longest) for name in names), strict=False))
    return {}


def _row_name(name: Any, longest: int) -> str:
    text = plain(float(name)) if isinstance(name, (int, float, np.number)) else str(name) or "(root)"
    return text if len(text) <= longest else "…" + text[1 - longest :]
