"""The phases of a step as a row of boundaries: entering a phase ends the one before.

A boundary costs a reading of the clock and a tuple. What they mean is worked out when the step is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from workbench.engine.watch.host.clock import Clock, Reading

#: a phase and the micro-batch it is of (-1: of the whole step)
Place = tuple[str, int]

#: between the steps, and in a step what nobody named
NOWHERE: Place = ("", -1)
#: phases in which the rank does work of its own: a collective called there makes it wait
WORKING = frozenset({"data", "transfer", "forward", "backward", "optimizer"})


#: what watching costs: of no phase of training
ASIDE = "monitor"


class Span(NamedTuple):
    """A phase of a step: ``start_ms`` from the step's beginning; one that was entered several times is summed."""

    phase: str
    micro_batch: int
    start_ms: float
    duration_ms: float


class Timeline:
    """Boundaries of the step that runs. ``here`` is where it is now."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.here: Place = NOWHERE
        self.boundaries: list[tuple[Reading, Place]] = []

    def enter(self, phase: str, micro_batch: int = -1) -> Reading:
        """A phase begins, now."""
        return self.go((phase, micro_batch))

    def go(self, place: Place) -> Reading:
        """``enter`` for a place that was left before."""
        self.here = place
        now = self.clock.now()
        self.boundaries.append((now, place))
        return now

    def take(self) -> list[tuple[Reading, Place]]:
        """The boundaries so far; the timeline starts anew."""
        taken, self.boundaries = self.boundaries, []
        return taken


def spans(starts_ms: Sequence[float], places: Sequence[Place]) -> list[Span]:
    """Phases between boundaries, in the order in which they were first entered.

    What works, and "monitor", is one per (phase, micro-batch). What waits is one per (phase, micro-batch) and phase of
    work that it interrupts or follows: communication in the forward pass, in the backward pass and in the optimizer
    are three, each with its own start.

    ``starts_ms[i]`` is when ``places[i]`` was entered; the last place only ends the one before it, and ``NOWHERE`` is
    left out. So the durations add up to the time from the first to the last boundary, less what was nowhere.
    """
    first: dict[tuple[Any, ...], float] = {}
    total: dict[tuple[Any, ...], float] = {}
    key: tuple[Any, ...]  # a place; of what waits also the place of the work
    work = NOWHERE
    for place, start, end in zip(places, starts_ms, starts_ms[1:], strict=False):
        phase = place[0]
        if phase in WORKING:
            key = work = place
        elif phase == ASIDE:
            key = place
        elif phase:
            key = (*place, work)
        else:
            continue
        if key in total:
            total[key] += end - start
        else:
            first[key], total[key] = start, end - start
    return [Span(key[0], key[1], first[key], duration) for key, duration in total.items()]


def covered_ms(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals (begin, end): time in which at least one of them was under way."""
    length, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        if end > reached:
            length += end - max(begin, reached)
            reached = end
    return length
