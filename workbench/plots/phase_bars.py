"""Step time of each rank by phase: stacked bars of the mean over the latest steps, with the straggler marked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store
from workbench.telemetry.stragglers import STRAGGLER, mean_by_phase, own_work_by_rank

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "phase_bars"
TITLE = "Time per step by phase, last 20 steps"
TAB = "ranks"
AXIS = ""
EMPTY = "No phases were recorded: train with --monitor light or full."
REPLACE = True
PERIOD_S = 2.0
STEPS = 20
MOST_BARS = 64
#: phases that run beside others, so they are no part of the step's length
_BESIDE = ("overlapped", "monitor")


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """One row per rank and phase: rank, row (vertical position), left, right (ms from the start of the step), phase,
    colour, share (of the step), slow (percent above the median rank, NaN unless a straggler), at (x of its mark)."""
    steps, kept = cursor or (None, None)
    phases, steps = rows.whole_steps(store, "phases", steps)
    if not phases["step"].size:
        return _empty(), (steps, kept)
    names = ("step", "rank", "phase", "duration_ms")
    joined = {n: np.concatenate([kept[n], phases[n]]) if kept else phases[n] for n in names}
    newest = np.unique(joined["step"])[-STEPS:]
    taken = joined["step"] >= newest[0]
    kept = {name: values[taken] for name, values in joined.items()}
    return _bars(kept, store), (steps, kept)


def _bars(phases: Columns, store: Store) -> Columns:
    ranks = store.mesh.world_size
    names, table = mean_by_phase(phases, ranks)
    relative = own_work_by_rank(phases, store.mesh)
    shown = [place for place, name in enumerate(names) if name not in _BESIDE]
    chosen = np.arange(ranks)
    if ranks > MOST_BARS:  # the slowest, the fastest, and some in between
        order = np.argsort(-relative, kind="stable")
        chosen = order[np.unique(np.linspace(0, ranks - 1, MOST_BARS).astype(int))]
    table, relative = table[chosen][:, shown], relative[chosen]
    ends = np.cumsum(table, axis=1)
    total = ends[:, -1:] if ends.shape[1] else np.ones((chosen.size, 1))
    count = len(shown)
    row = np.repeat(np.arange(chosen.size), count).astype(float)
    slowest = (relative == np.nanmax(relative)) & (relative > STRAGGLER) if chosen.size > 1 else relative > 9
    first = np.tile(np.arange(count) == 0, chosen.size)
    slow = np.where(first, np.repeat(np.where(slowest, 100 * relative, math.nan), count), math.nan)
    phase = np.tile(np.array([names[place] for place in shown], dtype=object), chosen.size)
    return {
        "rank": np.repeat(chosen, count).astype(float),
        "row": row,
        "left": (ends - table).ravel(),
        "right": ends.ravel(),
        "phase": phase,
        "colour": np.array([theme.PHASES[name] for name in phase], dtype=object),
        "share": (table / np.maximum(total, 1e-9)).ravel(),
        "slow": slow,
        "at": np.where(np.isnan(slow), math.nan, np.repeat(total[:, 0], count) * 1.02),
    }


def _empty() -> Columns:
    numbers = ("rank", "row", "left", "right", "share", "slow", "at")
    text = dict.fromkeys(("phase", "colour"), np.empty(0, dtype=object))
    order = ("rank", "row", "left", "right", "phase", "colour", "share", "slow", "at")
    return {name: text.get(name, np.empty(0)) for name in order if name in text or name in numbers}


def figure(source: ColumnDataSource) -> Figure:
    """Draw one stacked bar per rank."""
    from bokeh.models import DataRange1d, HoverTool

    drawn = theme.new_figure(
        TITLE,
        x_label="ms per step",
        y_label="rank",
        height=260,
        x_range=DataRange1d(start=0, range_padding=0.1),
        y_range=DataRange1d(flipped=True, range_padding=0.02),
    )
    bars = drawn.hbar(
        y="row", height=0.8, left="left", right="right", source=source, fill_color="colour", line_color=None
    )
    drawn.scatter("at", "row", source=source, marker="inverted_triangle", angle=math.pi / 2, size=10, color=theme.BAD)
    theme.label_rank_rows(drawn, source, ticks=9)
    tips = [
        ("rank", "@rank{0}"),
        ("phase", "@phase"),
        ("from", "@left{0.0} ms"),
        ("to", "@right{0.0} ms"),
        ("share", "@share{0.0 %}"),
        ("slower than the median", "@slow{0} %"),
    ]
    drawn.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    return theme.finish(drawn)
