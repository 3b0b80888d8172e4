"""``draw`` puts a Bokeh figure on a matplotlib canvas, ``still`` makes an SVG of one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from workbench.core.numbers import number
from workbench.plots.still import axes, glyphs, legend, svg
from workbench.plots.still.canvas import FONT_PX, Box, Canvas, printable, shortened
from workbench.plots.still.rows import GlyphRows, optional, rgba

WIDTH = 640
_TOP, _BOTTOM, _RIGHT = 12, 38, 14
_TITLE_PX = 20
#: letters of a row's name, and in a picture narrower than ``WIDTH``
_LONGEST_NAME, _SHORT_NAME = 30, 16
#: width of an axis whose ticks are numbers, and of its label
_NUMBERS_PX, _LABEL_PX = 46, 16


@dataclass(frozen=True, kw_only=True)
class Still:
    """``svg``: the picture; ``words``: the same for who cannot see it; ``left_out``: glyphs that it lacks."""

    svg: str
    words: str
    left_out: tuple[str, ...] = ()


def still(figure: Any, *, title: str, wide: bool = False) -> Still:
    """The figure as an SVG of ``WIDTH`` (twice that when ``wide``) times its own height."""
    width, height = WIDTH * (2 if wide else 1), int(figure.height or 260)
    canvas = Canvas(width, height, svg.INK)
    left_out = draw(canvas, canvas.box, figure)
    words = description(figure, title)
    return Still(svg=svg.written(canvas.figure, name=f"still-{figure.id}", words=words), words=words, left_out=left_out)


def draw(canvas: Canvas, box: Box, figure: Any, *, title: str = "", empty: str = "") -> tuple[str, ...]:
    """Draw a Bokeh figure into ``box``, its ``title`` above; returns the kinds of glyph that it leaves out. ``empty``:
    what to write when it has no data."""
    found = _glyphs_of(figure)
    names = axes.row_names(figure, list(found.values()), longest=_LONGEST_NAME if box.width >= WIDTH else _SHORT_NAME)
    bar = legend.colour_bar_of(figure)
    left = box.left + _LABEL_PX + _label_width([*names.values(), *axes.factors(figure.y_range)])
    right = box.right - _RIGHT - (legend.COLOUR_BAR_PX if bar else 0)
    entries = legend.in_rows(legend.entries_of(figure, found), right - left)
    head = box.top + (_TITLE_PX if title else 0)
    top = head + _TOP + legend.ROW_PX * len(entries)
    inner = Box(left=left, top=top, width=right - left, height=box.bottom - _BOTTOM - top)
    pane = canvas.pane(inner)
    left_out = {rows.kind for rows in found.values() if not glyphs.draw(pane, rows) and rows.size}
    axes.set_ranges(pane, figure)
    axes.draw_ticks(canvas, pane, inner, figure, names)
    _draw_spans(pane, figure)
    _label(canvas, figure, box, inner)
    legend.draw_legend(canvas, entries, left, head + 3)
    if title:
        canvas.text(box.left + _LABEL_PX, box.top + 14, title, colour=canvas.ink.text, fontsize=FONT_PX + 1)
    if empty and not any(rows.size for rows in found.values()):
        canvas.text((left + right) / 2, (top + inner.bottom) / 2, empty, colour=canvas.ink.muted, ha="center")
    if bar:
        legend.draw_colour_bar(canvas, bar, list(found.values()), inner)
    return tuple(sorted(left_out))


def description(figure: Any, title: str) -> str:
    """The figure in a few sentences: its axes, and for each line where it begins, its extremes and where it ends."""
    found = _glyphs_of(figure)
    x_label, y_label = (axes.axis_label(axis) for axis in (figure.xaxis[0], figure.yaxis[0]))
    text = f"{title}: {y_label or 'values'} over {x_label or 'x'}."
    named = legend.entries_of(figure, found) or [("", rows) for rows in found.values()]
    for name, rows in named[:8]:
        by_kind = {**dict.fromkeys(("Line", "Step", "Scatter", "Circle"), "y"), "Segment": "y1"}
        values = rows.y(by_kind[rows.kind]) if rows.kind in by_kind else None
        known = values[np.isfinite(values)] if values is not None else np.empty(0)
        if known.size:
            text += (
                f" {name or 'Values'}: first {number(float(known[0]))}, lowest {number(float(known.min()))}, "
                f"highest {number(float(known.max()))}, last {number(float(known[-1]))}."
            )
    if not any(rows.size for rows in found.values()):
        text += " It has no data."
    return printable(text)[:1200]


def _glyphs_of(figure: Any) -> dict[str, GlyphRows]:
    """The visible glyphs of a figure with their rows, by the id of their renderer, in the order of drawing."""
    x_factors, y_factors = axes.factors(figure.x_range), axes.factors(figure.y_range)
    return {
        renderer.id: GlyphRows(
            glyph=renderer.glyph,
            columns=dict(renderer.data_source.data),
            x_factors=x_factors,
            y_factors=y_factors,
        )
        for renderer in figure.renderers
        if optional(renderer, "glyph") is not None and renderer.visible
    }


def _label_width(names: Sequence[str]) -> float:
    longest = max((len(shortened(name)) for name in names), default=0)
    return min(190.0, 10 + 5.8 * longest) if longest else _NUMBERS_PX


def _label(canvas: Canvas, figure: Any, box: Box, inner: Box) -> None:
    """The labels of both axes, at the edges of the box."""
    look: dict[str, Any] = {"colour": canvas.ink.muted, "ha": "center"}
    x_label, y_label = (axes.axis_label(axis) for axis in (figure.xaxis[0], figure.yaxis[0]))
    if x_label:
        canvas.text(inner.left + inner.width / 2, box.bottom - 7, x_label, **look)
    if y_label:
        middle = inner.top + inner.height / 2
        canvas.text(box.left + 11, middle, y_label, rotation=90, rotation_mode="anchor", **look)


def _draw_spans(pane: Axes, figure: Any) -> None:
    """Lines from edge to edge that mark a place: Bokeh's Span at a number."""
    for part in (*figure.center, *figure.renderers):
        if type(part).__name__ != "Span":
            continue
        location = part.location
        if not isinstance(location, (int, float)) or not math.isfinite(location):
            continue
        line = pane.axvline if part.dimension == "height" else pane.axhline
        colour: Any = rgba(part.line_color) if not hasattr(part.line_color, "field") else "gray"
        line(float(location), color=colour, linewidth=1, linestyle=(0, (4, 3)))
