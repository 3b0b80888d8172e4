"""Utilisation of each rank's device over time: of its GPU, or the CPU usage of its process without a GPU."""

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

NAME = "utilisation"
TITLE = "Utilisation per rank"
TAB = "ranks"
AXIS = "time"
CHOICE = "rank"


def columns(store: Store, cursor: Cursor | None, chosen: int | None = None) -> tuple[Columns, Cursor]:
    """time (s since the first sample) and a column per rank in percent: ``gpu_<rank>`` or ``cpu_<rank>``."""
    prefix = "gpu" if rows.has_gpu(store) else "cpu"
    out, cursor_after = rows.per_rank_bins(store, f"{prefix}_percent", prefix, cursor, chosen=chosen)
    return (rows.thin(out) if cursor is None else out), cursor_after


def figure(source: ColumnDataSource) -> Figure:
    """Draw one line per rank, or a band over many ranks."""
    prefix = "gpu" if any(name.startswith("gpu_") for name in source.data) else "cpu"
    label = "GPU utilisation (%)" if prefix == "gpu" else "CPU (% of a core)"
    return per_rank.draw(source, TITLE, prefix=prefix, y_label=label, number="{0.0} %")
