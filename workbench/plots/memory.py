"""Memory per rank over time: of its GPU, or resident memory of its process without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.core.columns import Columns
from workbench.plots import per_rank
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "memory"
TITLE = "Memory per rank"
TAB = "ranks"
AXIS = "time"
CHOICE = "rank"
GIB = 2**30


def columns(store: Store, cursor: Cursor | None, chosen: int | None = None) -> tuple[Columns, Cursor]:
    """time (s since the first sample) and a column per rank in GiB: ``device_<rank>`` (GPU) or ``resident_<rank>``."""
    prefix, value = ("device", "gpu_memory_bytes") if rows.has_gpu(store) else ("resident", "rss_bytes")
    out, cursor_after = rows.per_rank_bins(store, value, prefix, cursor, scale=1 / GIB, chosen=chosen)
    return (rows.thin(out) if cursor is None else out), cursor_after


def figure(source: ColumnDataSource) -> Figure:
    """Draw one line per rank, or a band over many ranks."""
    prefix = "device" if any(name.startswith("device_") for name in source.data) else "resident"
    label = "GPU memory (GiB)" if prefix == "device" else "resident memory (GiB)"
    return per_rank.draw(source, TITLE, prefix=prefix, y_label=label, number="{0.00} GiB")
