"""The last steps as they ran: phases as bars per rank, so that bubbles and waiting are seen.

Waiting within a phase is drawn after its work: a forward pass that is interrupted by communication is one bar, and what
it waited the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.plots.lag import own_work
from workbench.telemetry import row_views as rows
from workbench.telemetry.phases import ASIDE, HIDDEN, in_turn
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "timeline"
TITLE = "The last steps, phase by phase"
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
#: bars that are sent at once; of more, fewer steps are shown
MOST_BARS = 1000


def columns(store: Store, cursor: Cursor | None, chosen: int | None = None) -> tuple[Columns, Cursor]:
    """A bar per phase: rank, row, y, height, start, end (ms since the first of the steps began), step, phase,
    colour, micro (micro-batch, -1: of the whole step). Of more than ``MOST_RANKS`` ranks: the chosen one
    with its replica, the slowest, and some between."""
    steps, kept = cursor or (None, None)
    phases, steps = rows.whole_steps(store, "phases", steps)
    if not phases["step"].size:
        return bars(phases, np.empty(0, dtype=int)), (steps, kept)
    names = ("step", "rank", "phase", "start_ms", "duration_ms", "micro_batch")
    joined = {n: np.concatenate([kept[n], phases[n]]) if kept else phases[n] for n in names}
    taken = joined["step"] >= np.unique(joined["step"])[-STEPS:][0]
    kept = {name: values[taken] for name, values in joined.items()}
    shown = _shown_ranks(kept, store, chosen)
    per_step = max(1, np.isin(kept["rank"], shown).sum() // np.unique(kept["step"]).size)
    first = np.unique(kept["step"])[-max(1, min(STEPS, MOST_BARS // per_step)) :][0]
    taken = (kept["step"] >= first) & np.isin(kept["rank"], shown)
    return bars({name: values[taken] for name, values in kept.items()}, shown), (steps, kept)


def _shown_ranks(phases: Columns, store: Store, chosen: int | None) -> np.ndarray:
    """Ranks with a row, ascending."""
    ranks = store.mesh.world_size
    if ranks <= MOST_RANKS:
        return np.arange(ranks)
    _, table = own_work(phases, ranks)
    slowest = int(np.argmax(np.nansum(table, axis=1)))
    block = store.mesh.tp * store.mesh.pp
    wanted = {slowest}
    if chosen is not None and chosen < ranks:
        wanted |= set(range(chosen // block * block, chosen // block * block + min(block, MOST_RANKS // 2)))
    spread = np.linspace(0, ranks - 1, MOST_RANKS - len(wanted)).astype(int)
    return np.array(sorted(wanted | {int(rank) for rank in spread}))


def height(columns: Columns) -> int:
    """A row of the same height per rank, up to the figure's own height."""
    return min(HEIGHT, 90 + 56 * np.unique(columns["row"]).size)


def bars(phases: Columns, shown: np.ndarray) -> Columns:
    """Phases of the ranks ``shown`` (ascending) as the columns of this figure: steps one after the other, each begins
    when the longest rank of the one before has ended. Bars of a step and rank do not overlap, but for the thin ones:
    waiting within a phase is drawn after its work."""
    steps, place = np.unique(phases["step"], return_inverse=True)
    starts, ends = in_turn(phases)
    length = np.zeros(steps.size)
    np.maximum.at(length, place, ends)
    begin = np.concatenate([[0.0], np.cumsum(length)[:-1]])[place] if steps.size else np.empty(0)
    row = np.searchsorted(shown, phases["rank"]).astype(float)
    thin = np.isin(phases["phase"], (*ASIDE, *HIDDEN))  # they run beside the others: a thin bar below
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
    """Bars per rank over milliseconds."""
    from bokeh.models import DataRange1d, HoverTool

    drawn = theme.new_figure(
        TITLE,
        x_label="ms since the first of these steps began",
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
    theme.rank_rows(drawn, source, ticks=17)
    tips = [
        ("rank", "@rank{0}"),
        ("step", "@step{0}"),
        ("phase", "@phase"),
        ("micro-batch", "@micro{0}"),
        ("from", "@start{0.00} ms"),
        ("to", "@end{0.00} ms"),
        ("order", "waiting within a phase is drawn after its work"),
    ]
    drawn.add_tools(HoverTool(renderers=[shown], tooltips=tips))
    return theme.finish(drawn)
