"""A matplotlib canvas that is measured in pixels from its upper left corner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D

FONT_PX = 11


@dataclass(frozen=True, kw_only=True)
class Ink:
    """Colours of what is no data: ``text`` of the legend, ``muted`` labels, axis ``line`` and ``grid``."""

    text: str
    muted: str
    line: str
    grid: str


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle on the canvas in pixels: its upper left corner and its size."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Where it ends across."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """Where it ends below."""
        return self.top + self.height


class Canvas:
    """A picture of ``width`` times ``height`` pixels that needs no display. ``ink``: colours of what is no data;
    ``scale``: pixels of a PNG for each of them; ``background``: a colour."""

    def __init__(self, width: float, height: float, ink: Ink, *, scale: float = 1.0, background: str = "none") -> None:
        # 72 points are an inch, so that a point of matplotlib is a pixel
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72 * scale, facecolor=background)
        self.figure.patch.set_visible(background != "none")
        FigureCanvasAgg(self.figure)
        self.box = Box(left=0, top=0, width=width, height=height)
        self.ink = ink
        self._pixels = Affine2D().scale(1 / width, -1 / height).translate(0, 1) + self.figure.transFigure

    def add(self, artist: Artist) -> None:
        """Draw an artist whose coordinates are pixels."""
        artist.set_transform(self._pixels)
        self.figure.add_artist(artist)

    def text(self, x: float, y: float, text: str, *, colour: str, **look: Any) -> None:
        """Text in one line whose baseline is at ``y``; nothing in it is read as a formula. ``look``: of ``Text``."""
        look = {"fontsize": FONT_PX, "va": "baseline", **look}
        self.figure.text(x, y, printable(text), transform=self._pixels, color=colour, parse_math=False, **look)

    def pane(self, box: Box) -> Axes:
        """Axes over ``box`` with a line at the left and at the bottom, without ticks or labels."""
        width, height = self.box.width, self.box.height
        place = (box.left / width, 1 - box.bottom / height, max(box.width, 1) / width, max(box.height, 1) / height)
        pane = self.figure.add_axes(place, facecolor="none")
        pane.patch.set_visible(False)
        pane.xaxis.set_visible(False)
        pane.yaxis.set_visible(False)
        for side, spine in pane.spines.items():
            spine.set(visible=side in ("left", "bottom"), color=self.ink.line, linewidth=1)
        return pane


def printable(text: str) -> str:
    """Text in one line without characters that neither a font nor XML has."""
    return "".join(character if character.isprintable() else " " for character in text)


def shortened(text: str, most: int = 30) -> str:
    """Text of at most ``most`` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"
