"""Timeline of the latest steps: one bar per phase and rank, which shows pipeline bubbles and waiting.

Waiting within a phase is drawn after the phase's work: a forward pass that communication interrupts is one bar,
followed by one bar for the communication. Evaluation, checkpoint and pause are between steps; where they would crush
the steps beside them they are drawn shorter, with the time that they took.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.core.numbers import milliseconds
from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.plots.browser_numbers import hover, tick_formatter
from workbench.telemetry import row_views as rows
from workbench.telemetry.judged import judged
from workbench.telemetry.phases import ASIDE, BETWEEN, HIDDEN, in_turn
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
HEIGHT = 700
MOST_RANKS = 64
#: largest number of bars; fewer steps are shown if they would have more
MOST_BARS = 1000
#: what is between steps is drawn at most this long, in parts of a step
LONGEST_BETWEEN = 0.35
#: a time without a phase is drawn from this part of a step on
LEAST_GAP = 0.005
_X_LABEL = "time since the first shown step began (long evaluations, checkpoints and pauses are shortened)"
#: a text is in bars of at least this part of the axis
LEAST_TEXT = 0.08
_HEAD_PX, _ROW_PX, _NAME_PX = 110, 30, 16


def columns(store: Store, cursor: Cursor | None, chosen: int | None = None) -> tuple[Columns, Cursor]:
    """One bar per phase, and per time without one: rank, row, y, height, start, end (ms since the first shown step
    began, as drawn), step, phase, colour, micro (micro-batch, -1: whole step), lasted (its time in words), note,
    inside (text in the bar, at middle), boundary and name (on one row per step: where it begins, and which it is;
    written at the height head).

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
    block = store.mesh.replica_size
    wanted = set() if slowest is None else {slowest}
    if chosen is not None and chosen < ranks:
        wanted |= set(range(chosen // block * block, chosen // block * block + min(block, MOST_RANKS // 2)))
    spread = np.linspace(0, ranks - 1, MOST_RANKS - len(wanted)).astype(int)
    return np.array(sorted(wanted | {int(rank) for rank in spread}))


def height(columns: Columns) -> int:
    """Height in pixels: that of a thin bar per rank, at most ``HEIGHT``."""
    return min(HEIGHT, _HEAD_PX + _ROW_PX * max(1, np.unique(columns["row"]).size))


def bars(phases: Columns, shown: np.ndarray) -> Columns:
    """Make this figure's columns from the phases of the ranks ``shown`` (ascending).

    A step begins where the slowest rank of the previous step has ended. Bars of a rank do not overlap, except the thin
    bars of phases that run beside others. Waiting within a phase is drawn after its work.
    """
    starts, ends = in_turn(phases)
    beside = np.isin(phases["phase"], (*ASIDE, *HIDDEN))  # these get a thin bar below
    after, since, until, why = _gaps(phases, starts, ends, beside)
    source = np.concatenate([np.arange(starts.size), after])
    is_gap = np.arange(source.size) >= starts.size
    starts, ends = np.concatenate([starts, since]), np.concatenate([ends, until])
    phase = np.where(is_gap, theme.NO_PHASE, phases["phase"][source].astype(object))
    lasted = _texts([milliseconds(float(time)) for time in ends - starts])
    beside, between = beside[source] & ~is_gap, np.isin(phase, BETWEEN)
    steps, place = np.unique(phases["step"][source], return_inverse=True)
    starts, ends, is_cut = _shortened_steps(place, starts, ends, between, beside | is_gap)
    length = np.zeros(steps.size)
    np.maximum.at(length, place, ends)
    begin = np.cumsum(length) - length
    row = np.searchsorted(shown, phases["rank"][source]).astype(float)
    readable = (ends - starts) > LEAST_TEXT * length.sum()
    label = is_cut & between & readable & (row == row.min(initial=math.inf))
    notes = _texts(["drawn shorter than it was" if cut else "" for cut in is_cut & between])
    notes[is_gap] = why
    first = np.zeros(source.size, dtype=bool)
    first[np.unique(place, return_index=True)[1]] = True
    head = -0.5 - _NAME_PX / min(_ROW_PX, (HEIGHT - _HEAD_PX) / max(1.0, row.max(initial=0) + 1))
    return {
        "rank": phases["rank"][source].astype(float),
        "row": row,
        "y": row + np.where(beside, 0.36, -0.06),
        "height": np.where(is_gap, 0.12, np.where(beside, 0.16, 0.6)),
        "start": begin[place] + starts,
        "end": begin[place] + ends,
        "step": steps[place].astype(float),
        "phase": phase,
        "colour": _texts([theme.PHASES.get(name, theme.COLOURS["light"]["muted"]) for name in phase]),
        "micro": np.where(is_gap, -1.0, phases["micro_batch"][source].astype(float)),
        "lasted": lasted,
        "note": notes,
        "inside": np.where(label, phase + " " + lasted, "").astype(object),
        "middle": begin[place] + (starts + ends) / 2,
        "boundary": np.where(first, begin[place], math.nan),
        "head": np.full(source.size, head),
        "name": np.where(first, _texts([f"step {step:,}" for step in steps[place].tolist()]), "").astype(object),
    }


def _gaps(
    phases: Columns, starts: np.ndarray, ends: np.ndarray, beside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """The times of a rank's step in which it is in no phase: the bar before each, where it starts and ends, and why."""
    steps, place = np.unique(phases["step"], return_inverse=True)
    length = np.zeros(steps.size)
    np.maximum.at(length, place, ends)
    least = LEAST_GAP * float(np.median(length)) if steps.size else 0.0
    wide = np.flatnonzero(~beside)
    order = wide[np.lexsort((starts[wide], phases["rank"][wide], place[wide]))]
    following = np.append(order[1:], order[:1])
    is_last = (place[order] != place[following]) | (phases["rank"][order] != phases["rank"][following])
    is_last[-1:] = True
    until = np.where(is_last, length[place[order]], starts[following])
    is_gap = until - ends[order] > least
    why = np.where(is_last, "the step of the slowest rank goes on", "between two phases nothing is timed")[is_gap]
    return order[is_gap], ends[order][is_gap], until[is_gap], [str(each) for each in why]


def _shortened_steps(
    place: np.ndarray, starts: np.ndarray, ends: np.ndarray, between: np.ndarray, aside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``_shortened`` of each step, whose number is ``place``: nothing between steps is longer than a part of the median
    step."""
    count = int(place.max(initial=-1)) + 1
    length = np.zeros(count)
    of_step = ~(between | aside)
    np.maximum.at(length, place[of_step], ends[of_step])
    longest = max(LONGEST_BETWEEN * float(np.median(length)), 1e-3) if count else 0.0
    starts, ends, is_cut = starts.copy(), ends.copy(), np.zeros(place.size, dtype=bool)
    for number in range(count):
        own = place == number
        starts[own], ends[own], is_cut[own] = _shortened(starts[own], ends[own], between[own], aside[own], longest)
    return starts, ends, is_cut


def _shortened(
    starts: np.ndarray, ends: np.ndarray, between: np.ndarray, thin: np.ndarray, longest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bars of one step, of which a time is ``longest`` at most in which no rank is in the step itself, but some are
    between steps; and which bars have such a time in them. All ranks are moved alike."""
    edges = np.unique(np.concatenate([starts, ends]))
    if not between.any() or edges.size < 2:
        return starts, ends, np.zeros(starts.size, dtype=bool)
    middle = (edges[1:] + edges[:-1]) / 2
    inside = (starts[:, None] < middle) & (middle < ends[:, None])
    is_free = ~inside[~between & ~thin].any(axis=0) & inside[between].any(axis=0)
    width = np.diff(edges)
    total = float(width[is_free].sum())
    if total <= longest:
        return starts, ends, np.zeros(starts.size, dtype=bool)
    moved = edges[0] + np.concatenate([[0.0], np.cumsum(np.where(is_free, width * longest / total, width))])
    return np.interp(starts, edges, moved), np.interp(ends, edges, moved), (inside & is_free).any(axis=1)


def _texts(values: list[str]) -> np.ndarray:
    return np.array(values, dtype=object)


def figure(source: ColumnDataSource) -> Figure:
    """Draw the bars, one row per rank, over milliseconds; lines and numbers say where steps begin."""
    from bokeh.core.properties import value
    from bokeh.models import DataRange1d

    drawn = theme.new_figure(
        TITLE,
        x_label=_X_LABEL,
        y_label="rank",
        height=_HEAD_PX + 4 * _ROW_PX,
        x_range=DataRange1d(start=0, range_padding=0.01),
        y_range=DataRange1d(flipped=True, range_padding=0.01),
    )
    drawn.xaxis.formatter = tick_formatter("milliseconds")
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
    drawn.vspan("boundary", source=source, line_color=theme.MARK, line_width=1, line_alpha=0.6)
    look = {"text_font_size": "11px", "text_font": value(theme.FONT), "source": source}
    drawn.text("boundary", "head", text="name", text_color=theme.NOTE, x_offset=3, text_baseline="top", **look)
    middle = {"text_align": "center", "text_baseline": "middle", "text_color": "#ffffff"}
    drawn.text("middle", "y", text="inside", **middle, **look)
    theme.label_rank_rows(drawn, source, ticks=17)
    tips = [
        ("rank", "@rank{0}"),
        ("step", "@step{0}"),
        ("phase", "@phase"),
        ("micro-batch", "@micro{0}"),
        ("time", "@lasted"),
        ("", "@note"),
    ]
    drawn.add_tools(hover(tips, renderers=[shown]))
    return theme.finish(drawn)
