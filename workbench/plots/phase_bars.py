"""Step time of each rank by phase: stacked bars, the mean over the steps of the verdict, whose straggler is marked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.plots.browser_numbers import hover, tick_formatter
from workbench.telemetry.judged import Judged, judged
from workbench.telemetry.phases import ASIDE, BETWEEN, HIDDEN
from workbench.telemetry.store import Store
from workbench.telemetry.stragglers import mean_by_phase, own_work_by_rank
from workbench.telemetry.verdict import WINDOW

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "phase_bars"
TITLE = f"Step time by phase, last {WINDOW} measured steps"
TAB = "ranks"
AXIS = ""
EMPTY = "No phases were recorded: train with --monitor light or full."
REPLACE = True
PERIOD_S = 2.0
MOST_BARS = 64
#: phases that are no part of the step's length: they run beside others, or between steps
_BESIDE = (*HIDDEN, *ASIDE, *BETWEEN)


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """One row per rank and phase: rank, row (vertical position), left, right (ms from the start of the step), phase,
    colour, share (of the step), slow (percent above the median of the other ranks, NaN unless it is
    the straggler), at (x of its mark)."""
    found = judged(store)
    is_new = found is not cursor and found.phases["step"].size
    return (_bars(found, store) if is_new else _empty()), found


def _bars(found: Judged, store: Store) -> Columns:
    phases = found.phases
    ranks = store.mesh.world_size
    names, table = mean_by_phase(phases, ranks)
    relative = own_work_by_rank(phases, store.mesh)
    shown = [place for place, name in enumerate(names) if name not in _BESIDE]
    chosen = np.arange(ranks)
    if ranks > MOST_BARS:  # the slowest, the fastest, and some in between
        order = np.argsort(-relative, kind="stable")
        chosen = order[np.unique(np.linspace(0, ranks - 1, MOST_BARS).astype(int))]
        if found.slow_rank is not None and found.slow_rank not in chosen:
            chosen[0] = found.slow_rank
    table, relative = table[chosen][:, shown], relative[chosen]
    ends = np.cumsum(table, axis=1)
    total = ends[:, -1:] if ends.shape[1] else np.ones((chosen.size, 1))
    count = len(shown)
    row = np.repeat(np.arange(chosen.size), count).astype(float)
    slowest = chosen == (-1 if found.slow_rank is None else found.slow_rank)
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
    from bokeh.models import DataRange1d

    drawn = theme.new_figure(
        TITLE,
        x_label="time per step, without evaluations, checkpoints and pauses",
        y_label="rank",
        height=260,
        x_range=DataRange1d(start=0, range_padding=0.1),
        y_range=DataRange1d(flipped=True, range_padding=0.02),
    )
    drawn.xaxis.formatter = tick_formatter("milliseconds")
    bars = drawn.hbar(
        y="row", height=0.8, left="left", right="right", source=source, fill_color="colour", line_color=None
    )
    drawn.scatter("at", "row", source=source, marker="inverted_triangle", angle=math.pi / 2, size=10, color=theme.BAD)
    theme.label_rank_rows(drawn, source, ticks=9)
    tips = [
        ("rank", "@rank{0}"),
        ("phase", "@phase"),
        ("from", "@left{milliseconds}"),
        ("to", "@right{milliseconds}"),
        ("share", "@share{0.0 %}"),
        ("own work, beside the other ranks", "@slow{+0} %"),
    ]
    drawn.add_tools(hover(tips, renderers=[bars]))
    return theme.finish(drawn)
