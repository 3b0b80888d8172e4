"""What travels between the kernel and a panel in the browser: pure functions.

Kernel to browser (custom messages of the widget, all with ``kind``):

- ``bokeh``: buffer 0 is BokehJS, gzipped; ``version``.
- ``full``: ``epoch``, ``figures`` (name, title, wide, height, item), ``colours``, ``facts``, ``columns`` and buffers.
- ``delta``: ``epoch``, ``facts``, ``columns`` and buffers: rows to append. Of another epoch: to be ignored.
- ``picture``: the output of the panel became a picture; ``length``, ``at`` and ``part`` tell which ``src`` it has.

Browser to kernel: ``hello`` (``have``: BokehJS version that the page has, or null) and ``stop``.

``columns`` is ``{figure: [[column, kind, place], ...]}``; kind "f8" and "f4": buffer number ``place``; kind "text": the
values themselves.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from workbench.plots.base import Plot
from workbench.telemetry.store import Columns, Store

Cursors = dict[str, Any]
Message = tuple[dict[str, Any], list[bytes]]


def delta(plots: list[Plot], store: Store, cursors: Cursors) -> tuple[dict[str, Columns], Cursors]:
    """New columns of each figure since its cursor (absent: from the start), figures without news left out."""
    news: dict[str, Columns] = {}
    after: Cursors = {}
    for plot in plots:
        columns, after[plot.NAME] = plot.columns(store, cursors.get(plot.NAME))
        if rows_of(columns) or plot.NAME not in cursors:
            news[plot.NAME] = columns
    return news, after


def rows_of(columns: Columns) -> int:
    """How many rows."""
    return len(next(iter(columns.values()), ()))


def pack(news: dict[str, Columns]) -> tuple[dict[str, list[list[Any]]], list[bytes]]:
    """Columns as a small description and binary buffers (little-endian; f4 for what is only drawn)."""
    described: dict[str, list[list[Any]]] = {}
    buffers: list[bytes] = []
    for name, columns in news.items():
        entries: list[list[Any]] = []
        described[name] = entries
        for column, values in columns.items():
            if values.dtype.kind in "OU":
                entries.append([column, "text", [str(value) for value in values]])
                continue
            kind = "f8" if column in ("step", "at", "row") else "f4"
            entries.append([column, kind, len(buffers)])
            buffers.append(np.ascontiguousarray(values, dtype=f"<{kind}").tobytes())
    return described, buffers


def figure_items(plots: list[Plot], news: dict[str, Columns]) -> list[dict[str, Any]]:
    """Each figure as Bokeh's JSON item on a source with no rows; the browser fills the source named "rows"."""
    from bokeh.embed import json_item
    from bokeh.models import ColumnDataSource

    items = []
    for plot in plots:
        empty = {name: values[:0] for name, values in news[plot.NAME].items()}
        drawn = plot.figure(ColumnDataSource(empty, name="rows"))
        item: Any = json_item(drawn)
        about = {"name": plot.NAME, "title": plot.TITLE, "wide": bool(getattr(plot, "WIDE", False))}
        items.append({**about, "height": drawn.height, "item": item})
    return items


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
