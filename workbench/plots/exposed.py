"""Share of the step in which computation waits for communication, because no computation overlaps it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "exposed"
TITLE = "Exposed communication"
TAB = "communication"
AXIS = "step"
EMPTY = "No communication was recorded: a single rank has none, and --monitor off measures none."


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """step; lowest, median and highest share of the step over the ranks, in percent; hidden (percent of the
    communication time, over all ranks, that ran while the rank computed)."""
    raw, after = rows.whole_steps(store, "collectives", cursor[0] if cursor else None)
    times, seen = _step_times(store, raw, cursor[1] if cursor else (None, {}))
    ranks = store.mesh.world_size
    known = raw["rank"] < ranks
    steps, waits = rows.table_of(raw["step"][known], raw["rank"][known], raw["exposed_ms"][known], ranks)
    _, all_of_it = rows.table_of(raw["step"][known], raw["rank"][known], raw["duration_ms"][known], ranks)
    length = np.array([times.get(int(step), np.nan) for step in steps])
    with np.errstate(invalid="ignore", divide="ignore"):
        share = 100 * np.nan_to_num(waits) / length
        hidden = 100 * (1 - np.nansum(waits, axis=0) / np.nansum(all_of_it, axis=0)) if steps.size else np.empty(0)
    low, median, high = np.quantile(share, (0, 0.5, 1), axis=0) if steps.size else np.empty((3, 0))
    out = {"step": steps.astype(float), "lowest": low, "median": median, "highest": high, "hidden": hidden}
    return (thin(out) if cursor is None else out), (after, seen)


def thin(columns: Columns) -> Columns:
    """Keep fewer rows, including the extremes."""
    return rows.thin(columns, of=["lowest", "highest", "hidden"])


def _step_times(
    store: Store, raw: Columns, cursor: tuple[rows.StepCursor | None, dict[int, float]]
) -> tuple[dict[int, float], tuple[rows.StepCursor | None, dict[int, float]]]:
    """Milliseconds of each step (of its slowest rank), kept until all collectives of the step are known."""
    metrics, steps = rows.metrics_since(store, cursor[0])
    known = cursor[1] | dict(zip(metrics["step"].tolist(), metrics["step_time_ms"].tolist(), strict=True))
    last = int(raw["step"].max()) if raw["step"].size else 0
    return known, (steps, {step: time for step, time in known.items() if step > last})


def figure(source: ColumnDataSource) -> Figure:
    """Draw the band of all ranks and their median."""
    from bokeh.models import DataRange1d, HoverTool

    y_range = DataRange1d(start=0, range_padding=0.1)
    drawn = theme.new_figure(TITLE, x_label="step", y_label="% of the step", height=320, y_range=y_range, marks="step")
    band = drawn.varea("step", "lowest", "highest", source=source, color=theme.SPREAD, alpha=0.25)
    median = drawn.line("step", "median", source=source, color=theme.SPREAD, line_width=2)
    theme.add_legend(drawn, [("lowest to highest rank", [band]), ("median", [median])])
    tips = [
        ("step", "@step{0}"),
        ("lowest", "@lowest{0.0} %"),
        ("median", "@median{0.0} %"),
        ("highest", "@highest{0.0} %"),
        ("communication hidden", "@hidden{0} %"),
    ]
    drawn.add_tools(HoverTool(renderers=[median], tooltips=tips, mode="vline"))
    return theme.finish(drawn)
