"""A Bokeh figure as a still picture: SVG that needs no script, follows the page's colours and prints sharp.

``still(figure)`` draws what the figure module drew, from its own glyphs and rows, so a new figure gets its picture for
nothing. Text takes the page's colours by CSS classes: ``a`` axis lines, ``g`` grid, ``t`` text.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.plots import theme
from workbench.report import marks
from workbench.report.marks import Layer
from workbench.report.scales import Scale, as_numbers, elapsed, plain

WIDTH = 640
TOP, BOTTOM, RIGHT = 12, 38, 14
LEGEND_ROW = 18
LONGEST_LABEL = 30
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, kw_only=True)
class Still:
    """``svg``: the picture; ``words``: the same for who cannot see it; ``left_out``: glyphs that it lacks."""

    svg: str
    words: str
    left_out: tuple[str, ...] = ()


def still(figure: Any, *, title: str, wide: bool = False) -> Still:
    """The figure as an SVG of ``WIDTH`` (twice that when ``wide``) times its own height."""
    width = WIDTH * (2 if wide else 1)
    height = int(figure.height or 260)
    factors = tuple(_factors(axis) for axis in (figure.x_range, figure.y_range))
    layers = [marks.layer(renderer, *factors) for renderer in figure.renderers if _has_glyph(renderer)]
    legend = _legend(figure, layers)
    labels = _row_labels(figure, layers)
    left = 16 + _label_width(labels, factors[1])
    bar = _colour_bar_of(figure)
    rows = _legend_rows(legend, width - left - RIGHT)
    top = TOP + LEGEND_ROW * len(rows)
    x = _scale(figure.x_range, figure.x_scale, [each.x for each in layers], left, width - RIGHT - (64 if bar else 0))
    y = _scale(figure.y_range, figure.y_scale, [each.y for each in layers], height - BOTTOM, top)
    inside = "".join(marks.svg(drawn, x, y) for drawn in layers) + _spans(figure, x, y)
    clip = f"clip-{figure.id}"
    parts = [
        f'<clipPath id="{clip}"><rect x="{min(x.start, x.end):g}" y="{min(y.start, y.end):g}" '
        f'width="{abs(x.end - x.start):g}" height="{abs(y.end - y.start):g}"/></clipPath>',
        _axes(figure, x, y, labels),
        f'<g clip-path="url(#{clip})">{inside}</g>',
        _legend_svg(rows, left),
        _colour_bar(bar, layers, x.end + 10, y) if bar else "",
    ]
    words = describe(figure, layers, legend, title, x)
    svg = (
        f'<svg class="still" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(words, quote=True)}" '
        f'font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )
    left_out = tuple(sorted({type(each.glyph).__name__ for each in layers if each.rows and not marks.known(each)}))
    return Still(svg=svg, words=words, left_out=left_out)


def describe(figure: Any, layers: list[Layer], legend: list[tuple[str, Layer]], title: str, x: Scale) -> str:
    """The figure in a few sentences: its axes, and for each line where it begins, its extremes and where it ends."""
    x_label, y_label = (str(axis[0].axis_label or "").strip() for axis in (figure.xaxis, figure.yaxis))
    text = f"{title}: {y_label or 'values'} over {x_label or 'x'}."
    named = legend or [("", layer) for layer in layers]
    for name, layer in named[:8]:
        if layer.kind not in ("line", "step", "points") or not layer.y:
            continue
        values = layer.y[0][np.isfinite(layer.y[0])]
        if values.size:
            text += (
                f" {name or 'Values'}: first {plain3(values[0])}, lowest {plain3(values.min())}, "
                f"highest {plain3(values.max())}, last {plain3(values[-1])}."
            )
    if not any(layer.rows for layer in layers):
        text += " It has no data."
    return text[:1200]


def plain3(value: float) -> str:
    """Four digits: ``0.012345`` -> ``0.01234``."""
    return f"{value:.4g}"


def _has_glyph(renderer: Any) -> bool:
    return getattr(renderer, "glyph", None) is not None and getattr(renderer, "visible", True)


def _factors(axis_range: Any) -> tuple[str, ...]:
    return tuple(str(factor) for factor in getattr(axis_range, "factors", ()) or ())


def _scale(axis_range: Any, scale: Any, parts: list[list[np.ndarray]], start: float, end: float) -> Scale:
    """The scale of an axis: given bounds where there are, else what the rows reach, with the range's padding."""
    factors = _factors(axis_range)
    if factors:
        return Scale(low=0, high=len(factors), start=start, end=end, factors=factors)
    log = type(scale).__name__ == "LogScale"
    values = np.concatenate([np.ravel(part) for group in parts for part in group] or [np.empty(0)])
    values = values[np.isfinite(values) & (values > 0 if log else True)]
    low, high = (float(values.min()), float(values.max())) if values.size else (1.0, 10.0) if log else (0.0, 1.0)
    padding = getattr(axis_range, "range_padding", 0.0)
    padding = padding if isinstance(padding, (int, float)) else 0.0
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5))
    elif not log:
        low, high = low - padding / 2 * (high - low), high + padding / 2 * (high - low)
    bounds = [_bound(axis_range, name) for name in ("start", "end")]
    if getattr(axis_range, "flipped", False):
        start, end = end, start
    low, high = (low if bounds[0] is None else bounds[0]), (high if bounds[1] is None else bounds[1])
    if low > high and type(axis_range).__name__ == "Range1d":
        low, high, start, end = high, low, end, start
    if not high > low or (log and low <= 0):
        low, high = (1e-3, 1.0) if log else (low, low + 1.0)
    return Scale(low=low, high=high, start=start, end=end, log=log)


def _bound(axis_range: Any, name: str) -> float | None:
    try:
        value = getattr(axis_range, name)
    except Exception as error:  # Bokeh's own "unset" is raised on reading, and only that is meant
        if type(error).__name__ == "UnsetValueError":
            return None
        raise
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if numeric and math.isfinite(value) else None


def _row_labels(figure: Any, layers: list[Layer]) -> dict[float, str]:
    """Names of rows, where a figure writes them by a script: from columns ``row`` and ``layer`` (or ``rank``)."""
    if type(figure.yaxis[0].formatter).__name__ != "CustomJSTickFormatter":
        return {}
    for drawn in layers:
        rows = drawn.data.get("row")
        names = next((drawn.data[name] for name in ("layer", "label", "name", "rank") if name in drawn.data), None)
        if rows is not None and names is not None:
            pairs = dict(zip(as_numbers(rows).tolist(), map(_row_name, names), strict=False))
            return {
                row: name if len(name) <= LONGEST_LABEL else "…" + name[1 - LONGEST_LABEL :]
                for row, name in pairs.items()
            }
    return {}


def _row_name(name: Any) -> str:
    return plain(float(name)) if isinstance(name, (int, float, np.number)) else str(name) or "(root)"


def _label_width(labels: dict[float, str], factors: tuple[str, ...]) -> float:
    longest = max((len(text) for text in (*labels.values(), *factors)), default=0)
    return min(190.0, 8 + 5.6 * min(longest, LONGEST_LABEL)) if longest else 46.0


def _axes(figure: Any, x: Scale, y: Scale, labels: dict[float, str]) -> str:
    bottom, left = max(y.start, y.end), min(x.start, x.end)
    right, top = max(x.start, x.end), min(y.start, y.end)
    parts = [f'<path class="a" d="M{left:g} {top:g}V{bottom:g}H{right:g}"/>']
    seconds = getattr(figure.xaxis[0].formatter, "format", "") == "00:00:00"
    for value, name in _ticks(figure.xaxis[0], x, 8 if right - left < 700 else 14):
        at = float(x(np.array([value]))[0])
        text = elapsed(value) if seconds else _short(name)
        parts.append(
            f'<text class="t" x="{at:.1f}" y="{bottom + 15:g}" text-anchor="middle">{html.escape(text)}</text>'
        )
    if labels:
        wanted = max(1, round((bottom - top) / 13))
        stride = max(1, math.ceil(len(labels) / wanted))
        ticks = sorted(labels.items())[::stride]
    else:
        ticks = [(value, _short(text)) for value, text in _ticks(figure.yaxis[0], y, 5 if not y.factors else 40)]
    for value, text in ticks:
        at = float(y(np.array([value]))[0])
        if figure.ygrid[0].visible and not labels and not y.factors:
            parts.append(f'<path class="g" d="M{left:g} {at:.1f}H{right:g}"/>')
        parts.append(
            f'<text class="t" x="{left - 6:g}" y="{at + 3.5:.1f}" text-anchor="end">{html.escape(text)}</text>'
        )
    x_label, y_label = (str(axis[0].axis_label or "").strip() for axis in (figure.xaxis, figure.yaxis))
    if x_label:
        middle = (left + right) / 2
        parts.append(
            f'<text class="t" x="{middle:g}" y="{bottom + 31:g}" text-anchor="middle">{html.escape(x_label)}</text>'
        )
    if y_label:
        middle = (top + bottom) / 2
        parts.append(
            f'<text class="t" transform="translate(11 {middle:g}) rotate(-90)" text-anchor="middle">'
            f"{html.escape(y_label)}</text>"
        )
    return "".join(parts)


def _ticks(axis: Any, scale: Scale, wanted: int) -> list[tuple[float, str]]:
    """Places and texts of an axis; whole numbers where its ticker has no others, powers where its tag says so."""
    whole = getattr(axis.ticker, "min_interval", 0) == 1 and not scale.factors
    ticks = scale.ticks(axis.ticker.desired_num_ticks if whole else wanted)
    if whole:
        ticks = [(value, text) for value, text in ticks if value == round(value)]
    if theme.POWER_OF_TWO in axis.formatter.tags:
        return [(value, f"2{text.translate(_RAISED)}") for value, text in ticks]
    return ticks


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


def _legend(figure: Any, layers: list[Layer]) -> list[tuple[str, Layer]]:
    of = {id(layer.glyph): layer for layer in layers}
    entries = []
    for legend in figure.legend:
        for item in legend.items:
            label = getattr(item.label, "value", item.label)
            first = next((of[id(r.glyph)] for r in item.renderers if _has_glyph(r) and id(r.glyph) in of), None)
            if isinstance(label, str) and first is not None:
                entries.append((label, first))
    return entries


def _legend_rows(legend: list[tuple[str, Layer]], width: float) -> list[list[tuple[float, str, Layer]]]:
    rows: list[list[tuple[float, str, Layer]]] = []
    at = math.inf
    for label, layer in legend[:24]:
        needed = 30 + 6.2 * min(len(label), LONGEST_LABEL)
        if at + needed > width:
            rows.append([])
            at = 0.0
        rows[-1].append((at, _short(label), layer))
        at += needed
    return rows


def _legend_svg(rows: list[list[tuple[float, str, Layer]]], left: float) -> str:
    parts = []
    for number, row in enumerate(rows):
        middle = 11 + LEGEND_ROW * number
        for at, label, layer in row:
            colour = marks.swatch(layer)
            parts.append(f'<rect x="{left + at:g}" y="{middle - 4:g}" width="14" height="5" rx="2" fill="{colour}"/>')
            parts.append(f'<text class="t l" x="{left + at + 19:g}" y="{middle + 3:g}">{html.escape(label)}</text>')
    return "".join(parts)


def _colour_bar_of(figure: Any) -> Any:
    return next((part for part in figure.right if type(part).__name__ == "ColorBar"), None)


def _colour_bar(bar: Any, layers: list[Layer], left: float, y: Scale) -> str:
    """The bar with the numbers at its ends and in its middle."""
    mapper = bar.color_mapper
    if not hasattr(mapper, "palette") or hasattr(mapper, "factors"):
        return ""
    column = next((v for layer in layers if (v := marks.mapped_column(layer, mapper)) is not None), np.empty(0))
    log = type(mapper).__name__.startswith("Log")
    finite = column[np.isfinite(column) & (column > 0 if log else True)]
    low = mapper.low if mapper.low is not None else (float(finite.min()) if finite.size else 0.0)
    high = mapper.high if mapper.high is not None else (float(finite.max()) if finite.size else 1.0)
    top, bottom = min(y.start, y.end), max(y.start, y.end)
    palette = [str(mapper.palette[round(i * (len(mapper.palette) - 1) / 31)])[:7] for i in range(32)]
    step = (bottom - top) / len(palette)
    parts = [
        f'<rect x="{left:g}" y="{bottom - (i + 1) * step:.2f}" width="12" height="{step + 0.3:.2f}" fill="{colour}"/>'
        for i, colour in enumerate(palette)
    ]
    middle = math.sqrt(low * high) if log and low > 0 else (low + high) / 2
    percent = type(bar.formatter).__name__ == "NumeralTickFormatter" and bar.formatter.format.endswith("%")
    for share, value in ((0.0, low), (0.5, middle), (1.0, high)):
        at = bottom - share * (bottom - top)
        text = f"{100 * value:.2g}%" if percent and value < 1 else "100%" if percent else plain(float(f"{value:.2g}"))
        parts.append(f'<text class="t" x="{left + 16:g}" y="{at + 3.5:.1f}">{text}</text>')
    return "".join(parts)


def _spans(figure: Any, x: Scale, y: Scale) -> str:
    """Lines and bands that mark a place (Bokeh's Span and BoxAnnotation with plain numbers)."""
    parts = []
    for part in (*figure.center, *figure.renderers):
        kind = type(part).__name__
        location = getattr(part, "location", None)
        if kind == "Span" and isinstance(location, (int, float)):
            scale, upright = (x, True) if part.dimension == "height" else (y, False)
            at = float(scale(np.array([location]))[0])
            if math.isfinite(at):
                line = f"M{at:.1f} {y.start:g}V{y.end:g}" if upright else f"M{x.start:g} {at:.1f}H{x.end:g}"
                colour = part.line_color if isinstance(part.line_color, str) else "#888888"
                parts.append(f'<path d="{line}" stroke="{html.escape(colour)}" stroke-dasharray="4 3" fill="none"/>')
    return "".join(parts)
