"""Bokeh figures beside each other as one small PNG, for viewers that run no scripts."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from workbench.plots import theme
from workbench.plots.still.canvas import Box, Canvas, Ink
from workbench.plots.still.picture import draw

_LINE_PX, _MARGIN_PX = 16, 8
_LETTER_PX = 8  # of a title
#: colours of what is no data, on white
LIGHT = Ink(**{name: theme.COLOURS["light"][name] for name in ("text", "muted", "line", "grid")})


@dataclass(frozen=True, kw_only=True)
class Pane:
    """A Bokeh figure with its title; ``empty``: what to say when it has no data."""

    figure: Any
    title: str
    empty: str = ""


def side_by_side(panes: Sequence[Pane], *, title: str = "", width: int = 900, height: int = 260) -> bytes:
    """A PNG of ``width`` pixels with the figures in two columns, each ``height`` pixels high, below the ``title``."""
    lines = textwrap.wrap(title, width // _LETTER_PX)
    head = _LINE_PX * len(lines) + _MARGIN_PX
    rows = -(-len(panes) // 2)
    canvas = Canvas(width, head + rows * height, LIGHT, background="white")
    for number, line in enumerate(lines, 1):
        canvas.text(
            width / 2, number * _LINE_PX + 2, line, colour=LIGHT.text, ha="center", fontsize=12, fontweight="bold"
        )
    for place, pane in enumerate(panes):
        box = Box(left=width / 2 * (place % 2), top=head + height * (place // 2), width=width / 2, height=height)
        draw(canvas, box, pane.figure, title=pane.title, empty=pane.empty)
    return small_png(canvas.figure)


def small_png(canvas: Figure) -> bytes:
    """A canvas as a PNG with a palette: a third of the size of one in full colour."""
    agg: Any = canvas.canvas
    agg.draw()
    file = io.BytesIO()
    Image.fromarray(np.asarray(agg.buffer_rgba())).convert("RGB").quantize(200).save(file, "PNG", optimize=True)
    return file.getvalue()
