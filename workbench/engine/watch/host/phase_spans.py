"""Records when a step changes from one phase to the next, and computes the phases' durations from that.

During a step only the boundaries are recorded: entering a phase ends the previous one and costs one clock reading.
The durations are computed when the step has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from workbench.engine.watch.host.clock import Clock, Reading

#: name of a phase and its micro-batch (-1: the phase belongs to the whole step)
PhaseKey = tuple[str, int]

#: time between steps, and time within a step that belongs to no named phase
NO_PHASE: PhaseKey = ("", -1)
#: phases in which the rank computes or loads data; a collective called during one of them makes the rank wait
WORK_PHASES = frozenset({"data", "transfer", "forward", "backward", "optimizer"})
#: the phase that holds the cost of monitoring itself
MONITOR = "monitor"


class Span(NamedTuple):
    """One phase of a step. ``start_ms`` counts from the start of the step; repeated entries add to ``duration_ms``."""

    phase: str
    micro_batch: int
    start_ms: float
    duration_ms: float


class PhaseRecorder:
    """Records the phase boundaries of the running step. ``current`` is the phase that the step is in."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.current: PhaseKey = NO_PHASE
        self.boundaries: list[tuple[Reading, PhaseKey]] = []

    def enter(self, phase: str, micro_batch: int = -1) -> Reading:
        """Start ``phase`` now and return the clock reading."""
        return self.resume((phase, micro_batch))

    def resume(self, key: PhaseKey) -> Reading:
        """Start the phase ``key`` now, for example the one that a collective interrupted; return the clock reading."""
        self.current = key
        now = self.clock.now()
        self.boundaries.append((now, key))
        return now

    def take(self) -> list[tuple[Reading, PhaseKey]]:
        """Return the boundaries recorded so far and start with an empty list."""
        taken, self.boundaries = self.boundaries, []
        return taken


def compute_spans(starts_ms: Sequence[float], keys: Sequence[PhaseKey]) -> list[Span]:
    """Compute the spans between boundaries, in the order in which the phases were first entered.

    ``starts_ms[i]`` is when ``keys[i]`` was entered; the last key only ends the previous one. ``NO_PHASE`` is left out,
    so the durations add up to the time from the first to the last boundary minus the time in ``NO_PHASE``.

    Work phases and "monitor" give one span per (phase, micro-batch). Phases of waiting give one span per (phase,
    micro-batch) and work phase that they interrupt or follow: communication during the forward pass, during the
    backward pass and during the optimizer step are three spans, each with its own start.
    """
    first: dict[tuple[Any, ...], float] = {}
    total: dict[tuple[Any, ...], float] = {}
    group: tuple[Any, ...]  # a phase key; for waiting, followed by the key of the work phase
    work = NO_PHASE
    for key, start, end in zip(keys, starts_ms, starts_ms[1:], strict=False):
        phase = key[0]
        if phase in WORK_PHASES:
            group = work = key
        elif phase == MONITOR:
            group = key
        elif phase:
            group = (*key, work)
        else:
            continue
        if group in total:
            total[group] += end - start
        else:
            first[group], total[group] = start, end - start
    return [Span(group[0], group[1], first[group], duration) for group, duration in total.items()]


def compute_union_ms(intervals: Iterable[tuple[float, float]]) -> float:
    """Length in ms of the union of the intervals (begin, end): the time covered by at least one of them."""
    length, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        if end > reached:
            length += end - max(begin, reached)
            reached = end
    return length
