"""Bokeh glyphs as matplotlib artists, one function per kind of glyph.

A line is cut down to what its pixels can show. Many cells or points are painted as one image inside the SVG.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.transforms import IdentityTransform

from workbench.plots.still.canvas import FONT_PX, printable
from workbench.plots.still.rows import GlyphRows, as_numbers, colour_map, norm, optional
from workbench.telemetry.thin import minmax_indices

#: above so many shapes or points of a glyph they are painted as one image
MOST_SHAPES = 150
MOST_POINTS = 150
#: a line keeps the lowest and the highest point in each column of so many pixels
COLUMN_PX = 1.6
MOST_TEXTS = 500
LONGEST_TEXT = 40

_DASHES = {"solid": (), "dashed": (6,), "dotted": (2, 4), "dotdash": (2, 4, 6, 4), "dashdot": (6, 4, 2, 4)}
_MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle": "^", "inverted_triangle": "v", "star": "*", "hex": "h",
    "plus": "P", "cross": "+", "x": "x", "asterisk": "x", "dot": ".", "dash": "_", "y": "1",
}  # fmt: skip


def draw(pane: Axes, rows: GlyphRows) -> bool:
    """Draw a glyph with its rows; False when this kind of glyph is not known here."""
    drawer = _DRAWERS.get(rows.kind)
    if drawer is None:
        return False
    if rows.size:
        drawer(pane, rows)
    return True


def line_style(rows: GlyphRows) -> dict[str, Any]:
    """Colour, width and dash of a line, as matplotlib takes them."""
    dash = rows.constant("line_dash", ())
    width = float(rows.constant("line_width", 1.0))
    lengths = _DASHES.get(dash, ()) if isinstance(dash, str) else tuple(dash)
    lengths = lengths * 2 if len(lengths) % 2 else lengths
    # matplotlib multiplies dashes by the width of the line, Bokeh does not
    style: Any = (0, [length / max(width, 0.1) for length in lengths]) if lengths else "solid"
    return {"color": tuple(rows.colours("line")[0]), "linewidth": width, "linestyle": style}


def _line(pane: Axes, rows: GlyphRows) -> None:
    x, y = rows.x(), rows.y()
    if x is None or y is None:
        return
    if x.size and np.isfinite(x).all() and np.all(np.diff(x) >= 0):
        kept = minmax_indices(x, y, max(1, round(pane.bbox.width * 72 / pane.figure.dpi / COLUMN_PX)))
        x, y = x[kept], y[kept]
    steps = {"before": "steps-pre", "after": "steps-post", "center": "steps-mid"}
    drawstyle: Any = steps[rows.constant("mode", "before")] if rows.kind == "Step" else "default"
    pane.add_line(Line2D(x, y, drawstyle=drawstyle, solid_capstyle="butt", **line_style(rows)))


def _lines(pane: Axes, rows: GlyphRows) -> None:
    pairs = zip(rows.lists("xs", rows.x_factors), rows.lists("ys", rows.y_factors), strict=False)
    _add_lines(pane, rows, [np.column_stack(pair) for pair in pairs])


def _segments(pane: Axes, rows: GlyphRows) -> None:
    ends = (rows.x("x0"), rows.y("y0"), rows.x("x1"), rows.y("y1"))
    if any(end is None for end in ends):
        return
    table = np.column_stack(ends)  # type: ignore[arg-type]
    _add_lines(pane, rows, list(table[np.isfinite(table).all(axis=1)].reshape(-1, 2, 2)))


def _add_lines(pane: Axes, rows: GlyphRows, lines: list[np.ndarray]) -> None:
    style = line_style(rows)
    colours = rows.colours("line")
    rasterized = len(lines) > 4 * MOST_SHAPES
    style["color"] = colours if len(colours) == len(lines) else colours[0]
    pane.add_collection(LineCollection(lines, rasterized=rasterized, **style))


def _upright(pane: Axes, rows: GlyphRows) -> None:
    """Lines from edge to edge; they do not widen the range of x."""
    x = rows.x()
    if x is None:
        return
    lines = [[(at, 0.0), (at, 1.0)] for at in x.tolist()]
    collection = LineCollection(lines, transform=pane.get_xaxis_transform(), **line_style(rows))
    pane.add_collection(collection, autolim=False)


def _areas(pane: Axes, rows: GlyphRows) -> None:
    if rows.kind == "Patch":
        x, y = rows.x(), rows.y()
        outlines = [] if x is None or y is None else [(x, y)]
    else:
        outlines = list(zip(rows.lists("xs", rows.x_factors), rows.lists("ys", rows.y_factors), strict=False))
    _add_polygons(pane, rows, [np.column_stack(pair) for pair in outlines])


def _band(pane: Axes, rows: GlyphRows) -> None:
    x, low, high = rows.x(), rows.y("y1"), rows.y("y2")
    if x is None or low is None or high is None:
        return
    steps: Any = {"before": "pre", "after": "post", "center": "mid"}
    step = steps[rows.constant("step_mode", "before")] if rows.kind == "VAreaStep" else None
    where = np.isfinite(x) & np.isfinite(low) & np.isfinite(high)
    fill: Any = tuple(rows.colours("fill")[0])
    pane.fill_between(x, low, high, where=where.tolist(), step=step, color=fill, linewidth=0)


def _boxes(pane: Axes, rows: GlyphRows) -> None:
    left, right = _sides(rows.x, "x", "left", "right", "width")
    bottom, top = _sides(rows.y, "y", "bottom", "top", "height")
    if left is None or right is None or bottom is None or top is None:
        return
    corners = np.stack([left, bottom, left, top, right, top, right, bottom], axis=1).reshape(-1, 4, 2)
    if len(corners) <= MOST_SHAPES:
        _add_polygons(pane, rows, list(corners))
        return
    # one path per colour, painted as one image, without smooth edges where seams would show between cells
    colours, number = np.unique(rows.colours("fill"), axis=0, return_inverse=True)
    paths = [Path.make_compound_path_from_polys(corners[number.ravel() == index]) for index in range(len(colours))]
    smooth = not _by_value(rows)
    collection = PathCollection(paths, facecolors=colours, linewidths=0, antialiaseds=smooth, rasterized=True)
    collection.set_snap(False)  # else paths of different colours move apart by a pixel
    pane.add_collection(collection)


def _sides(
    of: Callable[[str], np.ndarray | None], centre: str, first: str, last: str, size: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Both sides of boxes along an axis: as they are given, or from their middle and their size."""
    middle, width = of(centre), of(size)
    if middle is not None and width is not None:
        return middle - width / 2, middle + width / 2
    return of(first), of(last)


def _by_value(rows: GlyphRows) -> bool:
    """Whether a colour mapper gives each shape its colour, as in a heat map."""
    return hasattr(getattr(optional(rows.glyph, "fill_color"), "transform", None), "palette")


def _add_polygons(pane: Axes, rows: GlyphRows, polygons: list[np.ndarray]) -> None:
    """Polygons with the fill and outline of their rows; cells of a heat map cover the seams between them."""
    fill = rows.colours("fill")
    fill = fill if len(fill) == len(polygons) else fill[:1]
    by_value = _by_value(rows)
    edges = np.column_stack([fill[:, :3], fill[:, 3] == 1]) if by_value else rows.colours("line")  # pale cells: none
    pane.add_collection(
        PolyCollection(
            polygons,
            facecolors=fill,
            edgecolors=edges,
            linewidths=0.6 if by_value else float(rows.constant("line_width", 1.0)),
            rasterized=len(polygons) > MOST_SHAPES,
        )
    )


def _points(pane: Axes, rows: GlyphRows) -> None:
    x, y = rows.x(), rows.y()
    if x is None or y is None:
        return
    fill, line = rows.colours("fill"), rows.colours("line")
    good = np.isfinite(x) & np.isfinite(y) & ((fill[:, 3] > 0) | (line[:, 3] > 0))
    marker = MarkerStyle(_MARKERS.get(str(rows.constant("marker", "circle")).removesuffix("_cross"), "o"))
    size = min(10.0, float(rows.constant("size", 6.0)))
    points = PathCollection(
        [marker.get_path().transformed(marker.get_transform())],
        sizes=[size**2],
        offsets=np.column_stack([x, y])[good],
        offset_transform=pane.transData,
        facecolors=fill[good] if marker.is_filled() else "none",
        edgecolors=line[good],
        linewidths=min(1.0, float(rows.constant("line_width", 1.0))),
        rasterized=int(good.sum()) > MOST_POINTS,
    )
    points.set_transform(IdentityTransform())
    pane.add_collection(points)


def _images(pane: Axes, rows: GlyphRows) -> None:
    x, y, width, height = rows.x(), rows.y(), rows.x("dw"), rows.y("dh")
    mapper = optional(rows.glyph, "color_mapper")
    tables = rows.columns.get(rows.field("image") or "", ())
    if mapper is None or x is None or y is None or width is None or height is None:
        return
    for row, cells in enumerate(tables):
        table = np.asarray(cells, dtype=float)
        sides = (x[row], x[row] + width[row], y[row], y[row] + height[row])
        pane.imshow(
            table,
            cmap=colour_map(mapper),
            norm=norm(mapper, table),
            extent=tuple(map(float, sides)),  # type: ignore[arg-type]
            origin="lower",
            interpolation="nearest",
            aspect="auto",
        )


def _texts(pane: Axes, rows: GlyphRows) -> None:
    x, y = rows.x(), rows.y()
    if x is None or y is None:
        return
    horizontal: Any = rows.constant("text_align", "left")
    vertical: Any = {"middle": "center_baseline", "top": "top"}.get(rows.constant("text_baseline", "bottom"), "bottom")
    shown = np.isfinite(x) & np.isfinite(y) & np.array([bool(text) for text in rows.texts("text")], dtype=bool)
    pane.update_datalim(np.column_stack([x, y])[shown])
    places = list(zip(x.tolist(), y.tolist(), rows.texts("text"), rows.colours("text"), strict=False))
    for at, height, text, colour in places[:MOST_TEXTS]:
        if text and np.isfinite([at, height]).all():
            ink: Any = tuple(colour)
            pane.text(
                at,
                height,
                printable(text)[:LONGEST_TEXT],
                color=ink,
                fontsize=FONT_PX,
                ha=horizontal,
                va=vertical,
                clip_on=True,
                parse_math=False,
            )


def mapped_values(rows: GlyphRows, mapper: Any) -> np.ndarray | None:
    """The values that a colour mapper colours in this glyph; None when it colours none."""
    spec = optional(rows.glyph, "fill_color")
    if getattr(spec, "transform", None) is mapper:
        return as_numbers(rows.columns.get(spec.field, ()))
    if optional(rows.glyph, "color_mapper") is mapper:
        tables = rows.columns.get(rows.field("image") or "", ())
        return np.concatenate([np.ravel(np.asarray(table, float)) for table in tables] or [np.empty(0)])
    return None


_DRAWERS: dict[str, Callable[[Axes, GlyphRows], None]] = {
    **dict.fromkeys(("Line", "Step"), _line),
    **dict.fromkeys(("Scatter", "Circle"), _points),
    **dict.fromkeys(("Quad", "Rect", "VBar", "HBar"), _boxes),
    **dict.fromkeys(("Patch", "Patches"), _areas),
    **dict.fromkeys(("VArea", "VAreaStep"), _band),
    "MultiLine": _lines,
    "Segment": _segments,
    "VSpan": _upright,
    "Image": _images,
    "Text": _texts,
}
