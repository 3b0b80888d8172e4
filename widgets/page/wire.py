"""The messages between the kernel and a panel in the browser, and pure functions that encode them.

Kernel to browser (custom messages of the widget; all have ``kind``; those about a run have ``run``, its number in the
panel):

- ``bokeh``: buffer 0 is BokehJS, gzipped; ``version``.
- ``full``: ``epoch``, ``seq``, ``runs`` (names), ``theme``, ``facts``, ``columns`` and buffers (of ``SPINE`` only),
  ``extra``, ``controls``, ``compare`` (figures that show several runs).
- ``delta``: ``epoch``, ``seq``, ``facts`` (those that changed), ``figures`` to draw or draw again (name, title, tab,
  axis, wide, height, item; or, in place of item, ``failed``: why it cannot be drawn, or ``missing``: what is said of a
  tab whose figures have no rows), ``columns`` and buffers
  (rows to append; for figures named in ``replace``, all rows), ``extra``: console lines, events, controls
  (``widgets.panel.tab_content``). The page ignores a delta of another epoch.
- ``answer``: the response to a control: ``name`` and ``error`` (null: the command was sent to the ranks).
- ``picture``: the output of the panel became a picture; ``length``, ``at`` and ``part`` identify its ``src``.
- ``trouble``: ``text``, a message to show; ``detail``: a traceback, for the browser's console.

Browser to kernel: ``hello`` (``have``: BokehJS version that the page has, or null), ``ack`` (``run``, ``seq``,
``views``: per view what it shows: ``tab``, ``visible``), ``look`` (``views``), ``choose`` (``run``, and ``rank``,
``layer`` or ``logged``), and ``control`` (``run``, ``name``, ``value``).

``columns`` is ``{figure: [[column, kind, place(, texts)], ...]}``: buffer number ``place`` holds little-endian numbers
of ``kind``; the kind "code" stands for u2 indices into ``texts``.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.plots.base import Plot

#: the rows that every page has of every run: its steps, times and tokens, and the values by which runs are compared
SPINE = "spine"
Message = tuple[dict[str, Any], list[bytes]]
#: height in pixels of the message in place of a figure
FAILED_HEIGHT = 120
_SMALL = (("u1", 0, 255), ("u2", 0, 65535), ("i4", -(2**31), 2**31 - 1))


def rows_of(columns: Columns) -> int:
    """Return the number of rows."""
    return len(next(iter(columns.values()), ()))


def check(columns: Columns) -> None:
    """Raise ``TypeError`` for columns that cannot be sent, and ``ValueError`` for columns of different lengths."""
    for name, values in columns.items():
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biufOU":
            raise TypeError(
                f"column {name!r} holds {getattr(values, 'dtype', type(values).__name__)}, not numbers or text"
            )
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"columns differ in length: {', '.join(f'{name} {size}' for name, size in sizes.items())}")


def pack(news: dict[str, Columns]) -> tuple[dict[str, list[list[Any]]], list[bytes]]:
    """Encode columns as a description and binary buffers: whole numbers in the smallest type, others as f4."""
    described: dict[str, list[list[Any]]] = {}
    buffers: list[bytes] = []
    for name, columns in news.items():
        entries: list[list[Any]] = []
        described[name] = entries
        for column, values in columns.items():
            if values.dtype.kind in "OU":
                places: dict[str, int] = {}
                codes = [places.setdefault(str(value), len(places)) for value in values]
                entries.append([column, "code", len(buffers), list(places)])
                buffers.append(np.array(codes, dtype="<u2").tobytes())
                continue
            kind = kind_of(values)
            entries.append([column, kind, len(buffers)])
            buffers.append(np.ascontiguousarray(values, dtype=f"<{kind}").tobytes())
    return described, buffers


def kind_of(values: np.ndarray) -> str:
    """Return the smallest type that holds the values with the precision that a figure needs."""
    if not values.size:
        return "f4"
    low, high = float(np.min(values)), float(np.max(values))  # NaN if any value is NaN; then no integer type fits
    if low >= -(2**31) and high < 2**31 and bool((values == np.rint(values)).all()):
        return next(kind for kind, least, most in _SMALL if least <= low and high <= most)
    return "f4"


def figure_item(plot: Plot, columns: Columns) -> dict[str, Any]:
    """Return a figure as Bokeh's JSON item with an empty source named "rows", which the browser fills."""
    from bokeh.models import ColumnDataSource

    empty = {name: values[:0] for name, values in columns.items()}
    drawn: Any = plot.figure(ColumnDataSource(empty, name="rows"))
    drawn.height = height_of(plot, columns) or drawn.height
    return {**_about(plot), **item_of(drawn)}


def height_of(plot: Plot, columns: Columns) -> int:
    """The height in pixels that these rows need; 0 where it is the same for all, or there are none."""
    return int(plot.height(columns)) if rows_of(columns) and hasattr(plot, "height") else 0


def missing_item(plot: Plot, columns: Columns) -> dict[str, Any]:
    """Return what the page needs of a figure without rows, which it does not show."""
    return {**_about(plot), "missing": getattr(plot, "EMPTY", "Nothing was recorded yet.")}


def failed_item(plot: Plot, text: str) -> dict[str, Any]:
    """Return what the page shows in place of a figure that could not be made. ``text``: the reason."""
    return {**_about(plot), "height": FAILED_HEIGHT, "failed": text}


def _about(plot: Plot) -> dict[str, Any]:
    wide = bool(getattr(plot, "WIDE", False))
    return {"name": plot.NAME, "title": plot.TITLE, "tab": plot.TAB, "axis": plot.AXIS, "wide": wide}


def item_of(drawn: Any) -> dict[str, Any]:
    """Return a Bokeh figure as JSON, with its height in pixels."""
    from bokeh.embed import json_item

    return {"height": drawn.height, "item": json_item(drawn)}


def bokeh_version() -> str:
    """Return the version of the installed Bokeh."""
    import bokeh

    return str(bokeh.__version__)


@cache
def bokeh_js() -> bytes:
    """Return the BokehJS of the installed Bokeh, gzipped; each page receives it once and downloads nothing."""
    import bokeh

    path = Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js"
    return gzip.compress(path.read_bytes(), compresslevel=6, mtime=0)
