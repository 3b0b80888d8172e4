"""Timeline of the latest steps: one bar per phase and rank, which shows pipeline bubbles and waiting.

Waiting within a phase is drawn after the phase's work: a forward pass that communication interrupts is one bar,
followed by one bar for the communication.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.judged import judged
from workbench.telemetry.phases import ASIDE, HIDDEN, in_turn
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "timeline"
TITLE = "Phases of the latest steps"
TAB = "timeline"
AXIS = ""
WIDE = True
REPLACE = True
PERIOD_S = 2.0
CHOICE = "rank"
EMPTY = "No phases were recorded: train with --monitor light or full."
STEPS = 3
HEIGHT = 680
MOST_RANKS = 64
#: largest number of bars; fewer steps are shown if they would have more
MOST_BARS = 1000


def columns(store: Store, cursor: Cursor | None, chosen: int | None = None) -> tuple[Columns, Cursor]:
    """One bar per phase: rank, row, y, height, start, end (ms since the first shown step began), step, phase, colour,
    micro (micro-batch, -1: whole step).

    If there are more than ``MOST_RANKS`` ranks, the selected one with its replica, the straggler, and a sample of the
    others are shown.
    """
    steps, kept = cursor or (None, None)
    phases, steps = rows.whole_steps(store, "phases", steps)
    if not phases["step"].size:
        return bars(phases, np.empty(0, dtype=int)), (steps, kept)
    names = ("step", "rank", "phase", "start_ms", "duration_ms", "micro_batch")
    joined = {n: np.concatenate([kept[n], phases[n]]) if kept else phases[n] for n in names}
    taken = joined["step"] >= np.unique(joined["step"])[-STEPS:][0]
    kept = {name: values[taken] for name, values in joined.items()}
    shown = _shown_ranks(store, chosen)
    per_step = max(1, np.isin(kept["rank"], shown).sum() // np.unique(kept["step"]).size)
    first = np.unique(kept["step"])[-max(1, min(STEPS, MOST_BARS // per_step)) :][0]
    taken = (kept["step"] >= first) & np.isin(kept["rank"], shown)
    return bars({name: values[taken] for name, values in kept.items()}, shown), (steps, kept)


def _shown_ranks(store: Store, chosen: int | None) -> np.ndarray:
    """The ranks that are shown, in ascending order."""
    ranks = store.mesh.world_size
    if ranks <= MOST_RANKS:
        return np.arange(ranks)
    slowest = judged(store).slow_rank
    block = store.mesh.tp * store.mesh.pp
    wanted = set() if slowest is None else {slowest}
    if chosen is not None and chosen < ranks:
        wanted |= set(range(chosen // block * block, chosen // block * block + min(block, MOST_RANKS // 2)))
    spread = np.linspace(0, ranks - 1, MOST_RANKS - len(wanted)).astype(int)
    return np.array(sorted(wanted | {int(rank) for rank in spread}))


def height(columns: Columns) -> int:
    """Height in pixels: a fixed height per rank, at most ``HEIGHT``."""
    return min(HEIGHT, 90 + 56 * np.unique(columns["row"]).size)


def bars(phases: Columns, shown: np.ndarray) -> Columns:
    """Make this figure's columns from the phases of the ranks ``shown`` (ascending).

    A step begins where the slowest rank of the previous step has ended. Bars of a rank do not overlap, except the thin
    bars of phases that run beside others. Waiting within a phase is drawn after its work.
    """
    steps, place = np.unique(phases["step"], return_inverse=True)
    starts, ends = in_turn(phases)
    length = np.zeros(steps.size)
    np.maximum.at(length, place, ends)
    begin = np.concatenate([[0.0], np.cumsum(length)[:-1]])[place] if steps.size else np.empty(0)
    row = np.searchsorted(shown, phases["rank"]).astype(float)
    thin = np.isin(phases["phase"], (*ASIDE, *HIDDEN))  # phases that run beside others get a thin bar below
    phase = phases["phase"].astype(object)
    grey = theme.COLOURS["light"]["muted"]
    return {
        "rank": phases["rank"].astype(float),
        "row": row,
        "y": row + np.where(thin, 0.31, -0.12),
        "height": np.where(thin, 0.22, 0.6),
        "start": begin + starts,
        "end": begin + ends,
        "step": phases["step"].astype(float),
        "phase": phase,
        "colour": np.array([theme.PHASES.get(name, grey) for name in phase], dtype=object),
        "micro": phases["micro_batch"].astype(float),
    }


def figure(source: ColumnDataSource) -> Figure:
    """Draw the bars, one row per rank, over milliseconds."""
    from bokeh.models import DataRange1d, HoverTool

    drawn = theme.new_figure(
        TITLE,
        x_label="ms since the start of the first shown step",
        y_label="rank",
        height=HEIGHT,
        x_range=DataRange1d(start=0, range_padding=0.01),
        y_range=DataRange1d(flipped=True, range_padding=0.01),
    )
    shown = drawn.hbar(
        y="y",
        height="height",
        left="start",
        right="end",
        source=source,
        fill_color="colour",
        line_color="white",
        line_alpha=0.5,
        line_width=0.5,
    )
    theme.label_rank_rows(drawn, source, ticks=17)
    tips = [
        ("rank", "@rank{0}"),
        ("step", "@step{0}"),
        ("phase", "@phase"),
        ("micro-batch", "@micro{0}"),
        ("from", "@start{0.00} ms"),
        ("to", "@end{0.00} ms"),
        ("note", "waiting within a phase is drawn after its work"),
    ]
    drawn.add_tools(HoverTool(renderers=[shown], tooltips=tips))
    return theme.finish(drawn)
