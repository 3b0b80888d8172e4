"""Marks of still figures: a Bokeh glyph and its rows as SVG. One function per kind of glyph, all vectorised.

A line is cut down to what its pixels can show (first, lowest, highest and last point of each), a table of many cells
becomes a small PNG inside the SVG.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.report.scales import NO_COLOUR, Numbers, Scale, as_numbers, colours_of, field_of, mapped_index, rgb

#: above so many rectangles without an outline they are painted as one picture
MOST_RECTANGLES = 400
MOST_POINTS = 500
PIXEL = 1.6  # width on paper of what one group of points is cut down to
PICTURE_SCALE = 1.5


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One renderer: its glyph, its rows, and what they reach (data units, for the axes)."""

    glyph: Any
    data: dict[str, Any]
    kind: str
    rows: int
    x: list[Numbers] = field(default_factory=list)
    y: list[Numbers] = field(default_factory=list)

    def column(self, name: str, factors: tuple[str, ...] = ()) -> Numbers | None:
        """A coordinate property of the glyph as numbers per row."""
        spec = getattr(self.glyph, name, None)
        found = field_of(spec, self.data)
        if found is not None:
            return as_numbers(self.data[found], factors) if found in self.data else None
        value = getattr(spec, "value", spec)
        return np.full(self.rows, float(value)) if isinstance(value, (int, float)) else None


_EXTENT = {
    "quad": (("left", "right"), ("bottom", "top")),
    "vbar": (("x",), ("bottom", "top")),
    "hbar": (("left", "right"), ("y",)),
    "varea": (("x",), ("y1", "y2")),
    "varea_step": (("x",), ("y1", "y2")),
    "segment": (("x0", "x1"), ("y0", "y1")),
    "vspan": (("x",), ()),
}
_BAND = {"vbar": "width", "hbar": "height"}


def layer(renderer: Any, x_factors: tuple[str, ...], y_factors: tuple[str, ...]) -> Layer:
    """A renderer as a layer, with the extents of its rows."""
    glyph = renderer.glyph
    kind = _KINDS.get(type(glyph).__name__, "")
    data = dict(renderer.data_source.data)
    rows = max((len(values) for values in data.values()), default=0)
    made = Layer(glyph=glyph, data=data, kind=kind, rows=rows)
    if kind in ("multi_line", "patches"):
        for axis, name, factors in ((made.x, "xs", x_factors), (made.y, "ys", y_factors)):
            axis.extend(as_numbers(part, factors) for part in _lists(made, name))
        return made
    names = _EXTENT.get(kind, (("x",), ("y",)))
    for axis, wanted, factors in zip((made.x, made.y), names, (x_factors, y_factors), strict=True):
        axis.extend(values for name in wanted if (values := made.column(name, factors)) is not None)
    _widen(made, x_factors, y_factors)
    return made


def _widen(made: Layer, x_factors: tuple[str, ...], y_factors: tuple[str, ...]) -> None:
    """Bars, rectangles and images reach beyond their centre or corner."""
    if made.kind in _BAND:
        axis = made.x if made.kind == "vbar" else made.y
        half = made.column(_BAND[made.kind])
        if axis and half is not None:
            axis[:] = [axis[0] - half / 2, axis[0] + half / 2]
    elif made.kind == "rect":
        for axis, size in ((made.x, "width"), (made.y, "height")):
            half = made.column(size)
            if axis and half is not None:
                axis[:] = [axis[0] - half / 2, axis[0] + half / 2]
    elif made.kind == "image":
        for axis, size in ((made.x, "dw"), (made.y, "dh")):
            extent = made.column(size)
            if axis and extent is not None:
                axis.append(axis[0] + extent)


def svg(made: Layer, x: Scale, y: Scale) -> str:
    """The marks of a layer; "" for no rows or a glyph that is not known here (``known`` tells)."""
    draw = _DRAW.get(made.kind)
    return draw(made, x, y) if draw and made.rows else ""


def known(made: Layer) -> bool:
    """Whether this kind of layer can be drawn."""
    return made.kind in _DRAW


def stroke(made: Layer, index: int = 0) -> str:
    """Attributes of a line's look."""
    glyph = made.glyph
    colour = colours_of(getattr(glyph, "line_color", None), made.data, max(1, made.rows))[index]
    dash = getattr(glyph, "line_dash", None)
    dashed = ' stroke-dasharray="5 3"' if isinstance(dash, str) and dash not in ("solid", "") else ""
    if isinstance(dash, (list, tuple)) and dash:
        dashed = f' stroke-dasharray="{" ".join(str(int(part)) for part in dash)}"'
    width = _constant(glyph, "line_width", 1.0)
    alpha = _constant(glyph, "line_alpha", 1.0)
    return f'fill="none" stroke="{_attribute(colour)}" stroke-width="{width:g}" stroke-opacity="{alpha:g}"{dashed}'


def swatch(made: Layer) -> str:
    """The colour that stands for a layer in a legend."""
    for name in ("line_color", "fill_color"):
        colours = colours_of(getattr(made.glyph, name, None), made.data, max(1, made.rows))
        if colours and colours[0] != NO_COLOUR:
            return _attribute(colours[0])
    return "#888888"


def mapped_column(made: Layer, mapper: Any) -> Numbers | None:
    """The column that a colour mapper colours in this layer; None when it colours none."""
    spec: Any = getattr(made.glyph, "fill_color", None)
    if getattr(spec, "transform", None) is mapper and spec.field in made.data:
        return as_numbers(made.data[spec.field])
    if getattr(made.glyph, "color_mapper", None) is mapper:
        return np.concatenate([np.ravel(np.asarray(t, float)) for t in _lists(made, "image")] or [np.empty(0)])
    return None


def _constant(glyph: Any, name: str, default: float) -> float:
    spec = getattr(glyph, name, default)
    value = getattr(spec, "value", spec)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else default


def _attribute(text: str) -> str:
    return html.escape(text, quote=True)


def path(x: Numbers, y: Numbers) -> str:
    """Path data through points on paper; a NaN lifts the pen; points that share a pixel are cut down."""
    x, y = _thinned(x, y)
    good = np.isfinite(x) & np.isfinite(y)
    if not good.any():
        return ""
    starts = good & ~np.concatenate([[False], good[:-1]])
    places = np.round(np.column_stack([x, y])[good], 1)
    pen = np.where(starts[good], "M", "L")
    return "".join(f"{letter}{a:g} {b:g}" for letter, (a, b) in zip(pen.tolist(), places.tolist(), strict=True))


def _thinned(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """First, lowest, highest and last of the points in each ``PIXEL``; as it is where few or where x goes back."""
    if x.size <= MOST_POINTS or not np.all(np.diff(x[np.isfinite(x)]) >= 0):
        return x, y
    column = np.floor(np.nan_to_num(x, nan=-1.0) / PIXEL).astype(int)
    edges = np.flatnonzero(np.diff(column, prepend=column[0] - 1))
    ends = np.append(edges[1:], x.size)
    kept: list[int] = []
    for begin, end in zip(edges.tolist(), ends.tolist(), strict=True):
        if end - begin <= 4:
            kept.extend(range(begin, end))
            continue
        part = y[begin:end]
        chosen = {begin, end - 1}
        if np.isfinite(part).any():
            chosen |= {begin + int(np.nanargmin(part)), begin + int(np.nanargmax(part))}
        kept.extend(sorted(chosen))
    return x[kept], y[kept]


def _line(made: Layer, x: Scale, y: Scale) -> str:
    if len(made.x) < 1 or len(made.y) < 1:
        return ""
    at, value = x(made.x[0]), y(made.y[0])
    if made.kind == "step":
        mode = getattr(made.glyph, "mode", "before")
        at, value = (
            np.repeat(at, 2)[1:] if mode == "after" else np.repeat(at, 2)[:-1],
            np.repeat(value, 2)[:-1] if mode == "after" else np.repeat(value, 2)[1:],
        )
    drawn = path(at, value)
    return f'<path d="{drawn}" {stroke(made)}/>' if drawn else ""


def _multi_line(made: Layer, x: Scale, y: Scale) -> str:
    closed = "Z" if made.kind == "patches" else ""
    parts = []
    for index, (xs, ys) in enumerate(zip(made.x, made.y, strict=False)):
        look = _fill(made, index) if closed else stroke(made, min(index, max(0, made.rows - 1)))
        parts.append(f'<path d="{path(x(xs), y(ys))}{closed}" {look}/>')
    return "".join(parts)


def _patch(made: Layer, x: Scale, y: Scale) -> str:
    return f'<path d="{path(x(made.x[0]), y(made.y[0]))}Z" {_fill(made, 0)}/>' if made.x and made.y else ""


def _area(made: Layer, x: Scale, y: Scale) -> str:
    if not made.x or len(made.y) < 2:
        return ""
    good = np.isfinite(made.x[0]) & np.isfinite(made.y[0]) & np.isfinite(made.y[1])
    at, low, high = made.x[0][good], made.y[0][good], made.y[1][good]
    if not at.size:
        return ""
    there, back = path(x(at), y(low)), path(x(at), y(high))
    back = "L".join(reversed(back[1:].split("L")))
    return f'<path d="{there}L{back}Z" {_fill(made, 0)}/>'


def _fill(made: Layer, index: int) -> str:
    colours = colours_of(getattr(made.glyph, "fill_color", None), made.data, max(1, made.rows))
    colour = colours[min(index, len(colours) - 1)] if colours else NO_COLOUR
    return f'fill="{_attribute(colour)}" fill-opacity="{_constant(made.glyph, "fill_alpha", 1.0):g}"'


def _points(made: Layer, x: Scale, y: Scale) -> str:
    if not made.x or not made.y:
        return ""
    at, value = x(made.x[0]), y(made.y[0])
    alpha = made.column("fill_alpha")
    good = np.flatnonzero(np.isfinite(at) & np.isfinite(value) & (alpha > 0 if alpha is not None else True))
    if good.size > MOST_POINTS:
        good = good[np.unique(np.linspace(0, good.size - 1, MOST_POINTS).astype(int))]
    colours = colours_of(getattr(made.glyph, "fill_color", None), made.data, made.rows)
    lines = colours_of(getattr(made.glyph, "line_color", None), made.data, made.rows)
    radius = min(5.0, _constant(made.glyph, "size", 6.0) / 2)
    opacity = _constant(made.glyph, "fill_alpha", 1.0)
    parts = []
    for row in good.tolist():
        colour = colours[row] if colours[row] != NO_COLOUR else lines[row]
        parts.append(f'<circle cx="{at[row]:.1f}" cy="{value[row]:.1f}" r="{radius:g}" fill="{_attribute(colour)}"/>')
    return f'<g fill-opacity="{opacity:g}">{"".join(parts)}</g>' if parts else ""


def _boxes(made: Layer, x: Scale, y: Scale) -> tuple[Numbers, Numbers, Numbers, Numbers] | None:
    """Left, right, top, bottom on paper; None where the glyph lacks a side."""
    sides_x, sides_y = list(made.x), list(made.y)
    for sides, name in ((sides_x, "left"), (sides_y, "bottom")):
        if len(sides) == 1:
            base = made.column(name)
            sides.append(base if base is not None else np.zeros(made.rows))
    if len(sides_x) < 2 or len(sides_y) < 2:
        return None
    a, b, c, d = x(sides_x[0]), x(sides_x[1]), y(sides_y[0]), y(sides_y[1])
    return np.minimum(a, b), np.maximum(a, b), np.minimum(c, d), np.maximum(c, d)


def _rectangles(made: Layer, x: Scale, y: Scale) -> str:
    box = _boxes(made, x, y)
    if box is None:
        return ""
    left, right, top, bottom = box
    good = np.flatnonzero(np.isfinite(left) & np.isfinite(right) & np.isfinite(top) & np.isfinite(bottom))
    if good.size > MOST_RECTANGLES:
        return _painted(made, box, good, x, y)
    colours = colours_of(getattr(made.glyph, "fill_color", None), made.data, made.rows)
    opacity = _constant(made.glyph, "fill_alpha", 1.0)
    parts = [
        f'<rect x="{left[row]:.1f}" y="{top[row]:.1f}" width="{max(0.4, right[row] - left[row]):.1f}" '
        f'height="{max(0.4, bottom[row] - top[row]):.1f}" fill="{_attribute(colours[row])}"/>'
        for row in good.tolist()
    ]
    return f'<g fill-opacity="{opacity:g}" shape-rendering="crispEdges">{"".join(parts)}</g>'


def _painted(made: Layer, box: tuple[Numbers, ...], good: Numbers, x: Scale, y: Scale) -> str:
    """Many cells as one picture of the plot's area."""
    width, height = abs(x.end - x.start), abs(y.end - y.start)
    origin_x, origin_y = min(x.start, x.end), min(y.start, y.end)
    canvas = np.zeros((max(1, round(height * PICTURE_SCALE)), max(1, round(width * PICTURE_SCALE)), 4), np.uint8)
    left, right = (np.clip((side - origin_x) * PICTURE_SCALE, 0, canvas.shape[1]) for side in box[:2])
    top, bottom = (np.clip((side - origin_y) * PICTURE_SCALE, 0, canvas.shape[0]) for side in box[2:])
    fill = _fill_rgba(made)
    begin_x, end_x = np.floor(left).astype(int, casting="unsafe"), np.ceil(right).astype(int, casting="unsafe")
    begin_y, end_y = np.round(top).astype(int, casting="unsafe"), np.round(bottom).astype(int, casting="unsafe")
    for row in good.tolist():
        canvas[begin_y[row] : max(begin_y[row] + 1, end_y[row]), begin_x[row] : end_x[row]] = fill[row]
    return _picture(canvas, origin_x, origin_y, width, height)


def _fill_rgba(made: Layer) -> Numbers:
    spec: Any = getattr(made.glyph, "fill_color", None)
    mapper: Any = getattr(spec, "transform", None)
    if hasattr(mapper, "palette") and not hasattr(mapper, "factors") and spec.field in made.data:
        index = mapped_index(mapper, made.data[spec.field])
        table = np.array([(*rgb(str(colour)), 255) for colour in mapper.palette] + [(200, 206, 214, 255)], np.uint8)
        return table[index]
    colours = colours_of(spec, made.data, made.rows)
    of = {colour: (*rgb(colour), 255) if colour != NO_COLOUR else (0, 0, 0, 0) for colour in set(colours)}
    return np.array([of[colour] for colour in colours], np.uint8)


def _image(made: Layer, x: Scale, y: Scale) -> str:
    mapper = getattr(made.glyph, "color_mapper", None)
    tables = _lists(made, "image")
    if mapper is None or not len(tables) or len(made.x) < 2 or len(made.y) < 2:
        return ""
    table = np.asarray(tables[0], dtype=float)
    palette = np.array([(*rgb(str(colour)), 255) for colour in mapper.palette] + [(0, 0, 0, 0)], np.uint8)
    pixels = palette[mapped_index(mapper, table.ravel()).reshape(table.shape)][::-1]
    a, b = float(x(made.x[0])[0]), float(x(made.x[1])[0])
    c, d = float(y(made.y[0])[0]), float(y(made.y[1])[0])
    return _picture(pixels, min(a, b), min(c, d), abs(b - a), abs(d - c))


def _picture(pixels: Numbers, left: float, top: float, width: float, height: float) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<image x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
    )


def _segments(made: Layer, x: Scale, y: Scale) -> str:
    if len(made.x) < 2 or len(made.y) < 2:
        return ""
    ends = np.column_stack([x(made.x[0]), y(made.y[0]), x(made.x[1]), y(made.y[1])])
    ends = ends[np.isfinite(ends).all(axis=1)]
    if len(ends) > 4 * MOST_POINTS:
        ends = ends[:: math.ceil(len(ends) / (4 * MOST_POINTS))]
    drawn = "".join(f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for a, b, c, d in ends.tolist())
    return f'<path d="{drawn}" {stroke(made)}/>' if drawn else ""


def _upright(made: Layer, x: Scale, y: Scale) -> str:
    """Lines from edge to edge."""
    drawn = "".join(f"M{at:.1f} {y.start:.1f}V{y.end:.1f}" for at in x(made.x[0]).tolist())
    return f'<path d="{drawn}" {stroke(made)}/>'


def _text(made: Layer, x: Scale, y: Scale) -> str:
    words = _lists(made, "text")
    if not (made.x and made.y and words):
        return ""
    inks = colours_of(getattr(made.glyph, "text_color", None), made.data, made.rows)
    aligned = {"center": "middle", "right": "end"}.get(_word(made.glyph, "text_align"), "start")
    down = 4 if _word(made.glyph, "text_baseline") == "middle" else 0
    places = zip(x(made.x[0]).tolist(), y(made.y[0]).tolist(), words, inks, strict=False)
    return "".join(
        f'<text x="{a:.1f}" y="{b + down:.1f}" font-size="11" text-anchor="{aligned}" fill="{_attribute(ink)}">'
        f"{html.escape(str(word)[:40])}</text>"
        for a, b, word, ink in list(places)[:MOST_POINTS]
        if word and math.isfinite(a) and math.isfinite(b)
    )


def _word(glyph: Any, name: str) -> str:
    spec = getattr(glyph, name, None)
    return str(getattr(spec, "value", spec))


def _lists(made: Layer, name: str) -> list[Any]:
    return list(made.data.get(field_of(getattr(made.glyph, name, None), made.data) or "", ()))


_KINDS = {
    "Line": "line", "Step": "step", "Scatter": "points", "Circle": "points", "VArea": "varea",
    "VAreaStep": "varea_step", "Quad": "quad", "Rect": "rect", "VBar": "vbar", "HBar": "hbar", "Segment": "segment",
    "MultiLine": "multi_line", "Patches": "patches", "Patch": "patch", "Image": "image", "Text": "text",
    "VSpan": "vspan",
}  # fmt: skip
_DRAW: dict[str, Callable[[Layer, Scale, Scale], str]] = {
    **dict.fromkeys(("line", "step"), _line),
    **dict.fromkeys(("multi_line", "patches"), _multi_line),
    **dict.fromkeys(("varea", "varea_step"), _area),
    **dict.fromkeys(("quad", "rect", "vbar", "hbar"), _rectangles),
    "patch": _patch,
    "points": _points,
    "segment": _segments,
    "vspan": _upright,
    "image": _image,
    "text": _text,
}
