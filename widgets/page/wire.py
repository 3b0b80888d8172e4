"""What travels between the kernel and a panel in the browser: pure functions.

Kernel to browser (custom messages of the widget; all have ``kind``, those of a run its number ``run`` in the panel):

- ``bokeh``: buffer 0 is BokehJS, gzipped; ``version``.
- ``full``: ``epoch``, ``seq``, ``runs`` (names), ``theme``, ``facts``, ``columns`` and buffers (of ``SPINE`` only),
  ``extra``, ``controls``, ``compare`` (figures that show several runs).
- ``delta``: ``epoch``, ``seq``, ``facts`` (those that changed), ``figures`` (name, title, tab, axis, wide, height,
  empty, item: to be drawn anew; ``failed`` instead of item: why it cannot be drawn), ``columns`` and buffers: rows to
  append, or of figures named in ``replace`` the whole content; ``extra``: console lines, events, controls
  (``widgets.panel.tab_content``). Of another epoch: to be ignored.
- ``answer``: to a control: ``name`` and ``error`` (null: it is on its way to the ranks).
- ``picture``: the output of the panel became a picture; ``length``, ``at`` and ``part`` tell which ``src`` it has.
- ``trouble``: ``text``, for people; ``detail``: a traceback, for the browser's console.

Browser to kernel: ``hello`` (``have``: BokehJS version that the page has, or null), ``ack`` (``run``, ``seq``,
``views``: per view what it shows: ``tab``, ``visible``), ``look`` (``views``), ``choose`` (``run``, ``rank`` or
``layer``), and ``control`` (``run``, ``name``, ``value``).

``columns`` is ``{figure: [[column, kind, place(, texts)], ...]}``: buffer number ``place`` holds numbers of ``kind``
(little-endian), for "code" u2 places in ``texts``.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.plots.base import Plot

#: rows that every page has of every run, whatever it shows: the clock of a run, and what two runs are compared by
SPINE = "spine"
Message = tuple[dict[str, Any], list[bytes]]
#: pixels that a figure's message takes
FAILED_HEIGHT = 120
_SMALL = (("u1", 0, 255), ("u2", 0, 65535), ("i4", -(2**31), 2**31 - 1))


def rows_of(columns: Columns) -> int:
    """How many rows."""
    return len(next(iter(columns.values()), ()))


def check(columns: Columns) -> None:
    """``TypeError`` or ``ValueError`` for columns that cannot travel, or that are no table."""
    for name, values in columns.items():
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biufOU":
            raise TypeError(
                f"column {name!r} holds {getattr(values, 'dtype', type(values).__name__)}, not numbers or text"
            )
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"columns differ in length: {', '.join(f'{name} {size}' for name, size in sizes.items())}")


def pack(news: dict[str, Columns]) -> tuple[dict[str, list[list[Any]]], list[bytes]]:
    """Columns as a small description and binary buffers; whole numbers as small as they are, others as f4."""
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
    """The smallest type that holds the values as well as a figure needs them."""
    if not values.size:
        return "f4"
    low, high = float(np.min(values)), float(np.max(values))  # NaN where there is one: then none of these fits
    if low >= -(2**31) and high < 2**31 and bool((values == np.rint(values)).all()):
        return next(kind for kind, least, most in _SMALL if least <= low and high <= most)
    return "f4"


def figure_item(plot: Plot, columns: Columns) -> dict[str, Any]:
    """A figure as Bokeh's JSON item on a source with no rows; the browser fills the source named "rows"."""
    from bokeh.models import ColumnDataSource

    empty = {name: values[:0] for name, values in columns.items()}
    drawn = item_of(plot.figure(ColumnDataSource(empty, name="rows")))
    return {**_about(plot), "empty": getattr(plot, "EMPTY", "No rows yet."), **drawn}


def failed_item(plot: Plot, text: str) -> dict[str, Any]:
    """What the page shows in the place of a figure that could not be made; ``text`` says why."""
    return {**_about(plot), "empty": "", "height": FAILED_HEIGHT, "failed": text}


def _about(plot: Plot) -> dict[str, Any]:
    wide = bool(getattr(plot, "WIDE", False))
    return {"name": plot.NAME, "title": plot.TITLE, "tab": plot.TAB, "axis": plot.AXIS, "wide": wide}


def item_of(drawn: Any) -> dict[str, Any]:
    """A Bokeh figure as JSON, and its height in pixels."""
    from bokeh.embed import json_item

    return {"height": drawn.height, "item": json_item(drawn)}


def bokeh_version() -> str:
    """Version of the installed Bokeh."""
    import bokeh

    return str(bokeh.__version__)


@cache
def bokeh_js() -> bytes:
    """BokehJS of the installed Bokeh, gzipped: what a page gets once, instead of a download."""
    import bokeh

    path = Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js"
    return gzip.compress(path.read_bytes(), compresslevel=6, mtime=0)
