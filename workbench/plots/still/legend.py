"""The legend above a figure's axes, and the colour bar beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.image import BboxImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox, TransformedBbox

from workbench.plots.still.axes import tick_text
from workbench.plots.still.canvas import Box, Canvas, shortened
from workbench.plots.still.glyphs import line_style, mapped_values
from workbench.plots.still.rows import GlyphRows, colour_map, norm

ROW_PX = 18
MOST_ENTRIES = 24
#: width that the colour bar takes with its numbers
COLOUR_BAR_PX = 64
_BAR_PX, _GAP_PX = 12, 10

Entry = tuple[str, GlyphRows]


def entries_of(figure: Any, glyphs: Mapping[str, GlyphRows]) -> list[Entry]:
    """Each entry of the figure's legends with the first of its glyphs; ``glyphs``: by the id of their renderer."""
    entries = []
    for legend in figure.legend:
        for item in legend.items:
            label = getattr(item.label, "value", item.label)
            first = next((glyphs[renderer.id] for renderer in item.renderers if renderer.id in glyphs), None)
            if isinstance(label, str) and first is not None:
                entries.append((label, first))
    return entries[:MOST_ENTRIES]


def in_rows(entries: Sequence[Entry], width: float) -> list[list[tuple[float, Entry]]]:
    """The entries in rows of at most ``width`` pixels, each with its distance from the left."""
    rows: list[list[tuple[float, Entry]]] = []
    at = math.inf
    for label, glyph_rows in entries:
        needed = 30 + 6.2 * len(shortened(label))
        if at + needed > width:
            rows.append([])
            at = 0.0
        rows[-1].append((at, (label, glyph_rows)))
        at += needed
    return rows


def draw_legend(canvas: Canvas, rows: Sequence[Sequence[tuple[float, Entry]]], left: float, top: float) -> None:
    """Rows of the legend from ``top`` on: a piece of each line or a patch of its colour, and its label."""
    for number, row in enumerate(rows):
        middle = top + ROW_PX * number + 8
        for at, (label, glyph_rows) in row:
            begin = left + at
            if glyph_rows.kind in ("Line", "Step", "MultiLine", "Segment"):
                style = line_style(glyph_rows) | {"linewidth": 2.5}
                canvas.add(Line2D([begin, begin + 14], [middle, middle], **style))
            else:
                name = "fill" if "fill_color" in glyph_rows.glyph.properties() else "line"
                colour: Any = tuple(glyph_rows.colours(name)[0])
                canvas.add(Rectangle((begin, middle - 3), 14, 6, facecolor=colour, linewidth=0))
            canvas.text(begin + 19, middle + 4, shortened(label), colour=canvas.ink.text)


def colour_bar_of(figure: Any) -> Any:
    """The figure's colour bar over numbers, None when it has none."""
    bars = (part for part in figure.right if type(part).__name__ == "ColorBar")
    return next((bar for bar in bars if "low" in bar.color_mapper.properties()), None)


def draw_colour_bar(canvas: Canvas, bar: Any, glyphs: Sequence[GlyphRows], axes: Box) -> None:
    """The colour scale at the right of ``axes``, with the numbers at its ends and in its middle."""
    mapper = bar.color_mapper
    values = next((found for rows in glyphs if (found := mapped_values(rows, mapper)) is not None), np.empty(0))
    scale = norm(mapper, values)
    low, high = float(scale.vmin or 0.0), float(scale.vmax or 0.0)
    middle = math.sqrt(low * high) if type(mapper).__name__.startswith("Log") else (low + high) / 2
    left, (width, height) = axes.right + _GAP_PX, (canvas.box.width, canvas.box.height)
    place = Bbox.from_extents(left / width, 1 - axes.bottom / height, (left + _BAR_PX) / width, 1 - axes.top / height)
    image = BboxImage(TransformedBbox(place, canvas.figure.transFigure), cmap=colour_map(mapper), origin="lower")
    image.set_data(np.linspace(0, 1, 256)[:, np.newaxis])
    canvas.figure.add_artist(image)
    for share, value in ((0.0, low), (0.5, middle), (1.0, high)):
        text = tick_text(bar.formatter, float(f"{value:.2g}"))
        canvas.text(left + _BAR_PX + 4, axes.bottom - share * axes.height + 4, text, colour=canvas.ink.muted)
