"""What a rank spends its steps on: phases of every step, and of some the single collectives.

``PhaseWatch`` is the first of a rank's observers and its ``last`` the last, so that what the others cost is a phase of
its own ("monitor"). A boundary between phases costs a reading of the clock; records are made when a step is over, on a
GPU one step later. The clocks of ranks are never compared: each phase counts from its own rank's step.

Where steps are so short that this exceeds its part of the budget, phases are those of every second step, every fourth
and so on: each rank chooses by what it costs there, and the steps of one are among those of another.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from workbench.core.config import MonitorSpec
from workbench.core.records import CollectiveRecord, PhaseRecord
from workbench.engine.base.batch import Batch
from workbench.engine.base.capabilities import DdpReduced
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.parts import BatchObserver
from workbench.engine.base.strategy import Strategy
from workbench.engine.watch.host.clock import Clock, Reading, clock_for
from workbench.engine.watch.host.phase_spans import NOWHERE, Place, Timeline, covered_ms, spans
from workbench.engine.watch.torch.collectives import CollectiveTap, ReducerLog, records
from workbench.rundir.log import RankLogWriter

#: collectives are recorded in the first steps, and then in every tenth or, where that costs too much, more rarely
FIRST_STEPS = 3
EVERY = 10
#: shares of the monitor's budget that recording collectives, and phases, may take
SHARE_OF_BUDGET = 0.1
PHASES_SHARE = 0.4
#: phases are those of every so many steps at least
MOST_RARELY = 64
#: what writing a row costs the log's thread, of what making it costs here
_WRITING = 0.6
#: weight of a new measurement in a running average
_WEIGHT = 0.2
_OF_A_STEP = frozenset({"data", "forward_backward", "optimizer"})
#: what a step begins with under the trainer's own name for it
_FIRST = {"forward_backward": "transfer"}


@dataclass
class _Step:
    """A step whose readings are not looked at yet."""

    step: int
    begin: Reading
    boundaries: list[tuple[Reading, Place]] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    recorded: bool = False


class PhaseWatch(StepObserver):
    """Logs ``PhaseRecord`` of every step (or every ``phases_every``-th), and ``CollectiveRecord`` of those that are
    due. ``clock``: for tests."""

    def __init__(
        self,
        spec: MonitorSpec,
        strategy: Strategy,
        log: RankLogWriter,
        *,
        device: str = "cpu",
        clock: Clock | None = None,
    ) -> None:
        self.last = _Last(self)
        self.every = EVERY
        self.phases_every = 1
        self._usual_ms: float | None = None
        self._spec = spec
        self._strategy = strategy
        self._log = log
        self._on_host = device == "cpu"
        self._clock = clock or clock_for(device)
        self._timeline = Timeline(self._clock)
        self._tap = CollectiveTap(self._timeline, strategy.mesh, strategy.rank, split=self._on_host)
        self._now = _Step(step=0, begin=self._clock.now())
        self._in_step = False
        self._unread: deque[_Step] = deque()
        self._reducer: ReducerLog | None = None
        self._awaits_reducer: tuple[int, float] | None = None
        self._boundary_ms = _cost_of_a_boundary_ms(self._clock)
        self._open()

    def _open(self) -> None:
        strategy = self._strategy
        strategy.mark = self._mark
        strategy.aside = self._aside
        reducer = strategy.reducer() if isinstance(strategy, DdpReduced) else None
        if reducer is not None and strategy.mesh.dp > 1:
            self._reducer = ReducerLog(reducer, strategy.mesh, on_host=self._on_host)
        self._tap.install()

    def close(self) -> None:
        """Undo every wrap, and write what is left."""
        self._tap.remove()
        self._finish_step()
        self._resolve(wait=True)

    def begins(self, step: int, watch: int) -> None:
        self.cost_ms = 0.0
        self._finish_step()
        self._resolve()
        recorded = self._is_due(step)
        self._in_step = recorded or step % self.phases_every == 0
        begin = self._timeline.enter("monitor") if self._in_step else self._timeline.go(NOWHERE)
        self._now = _Step(step=step, begin=begin, recorded=recorded)
        self._tap.recording = recorded
        self._began_s = time.perf_counter()

    def phase(self, name: str) -> None:
        if name == "idle":
            self._timeline.go(NOWHERE)
            self._finish_step()
            self._resolve()
        elif self._in_step or name not in _OF_A_STEP:
            self._timeline.enter(_FIRST.get(name, name))

    def batch(self, step: int, batch: Batch) -> None:
        self._enter_in_step("monitor")

    def reduced(self, step: int) -> None:
        self._enter_in_step("monitor")

    def updated(self, step: int, skipped: bool) -> None:
        self._enter_in_step("monitor")

    def rolled_back(self, step: int) -> None:
        """What goes on, restoring, counts to the step that training is at again."""
        self._finish_step()
        self._resolve(wait=True)
        self._awaits_reducer = None
        self._now = _Step(step=step, begin=self._timeline.enter("checkpoint"))

    def _enter_in_step(self, phase: str) -> None:
        if self._in_step:
            self._timeline.enter(phase)

    def _ended(self) -> None:
        """The step is over, for all observers. What comes before the next one is still counted from its beginning."""
        if not self._in_step:
            return
        end = self._timeline.go(NOWHERE)
        step_ms = (time.perf_counter() - self._began_s) * 1e3
        began = time.thread_time()
        self._in_step = self._tap.recording = False
        now = self._now
        now.boundaries, now.calls = self._timeline.take(), self._tap.take()
        self._unread.append(now)
        self._now = _Step(step=now.step, begin=now.begin)
        self._timeline.boundaries.append((end, NOWHERE))
        self._resolve()
        self.cost_ms = (time.thread_time() - began) * 1e3 + self._boundary_ms * len(now.boundaries)
        if now.recorded:
            if self._on_host:
                self._choose_interval(step_ms)
        else:
            self._choose_phases(now.step, step_ms)

    def _is_due(self, step: int) -> bool:
        return step <= FIRST_STEPS or step % self.every == 0

    def _choose_interval(self, step_ms: float) -> None:
        """Twice as rarely, until the cost of a recorded step, spread over the steps between, keeps to its share."""
        while self.cost_ms > SHARE_OF_BUDGET * self._spec.budget * step_ms * self.every and self.every < 1280:
            self.every *= 2

    def _choose_phases(self, step: int, step_ms: float) -> None:
        """Of every step, every second, every fourth: as often as their share of the budget pays for."""
        cost_ms = self.cost_ms * (1 + _WRITING)
        usual = cost_ms if self._usual_ms is None else self._usual_ms + _WEIGHT * (cost_ms - self._usual_ms)
        self._usual_ms, before = usual, self.phases_every
        paid_ms = PHASES_SHARE * self._spec.budget * step_ms
        if usual > paid_ms * before and before < MOST_RARELY:
            self.phases_every *= 2
        elif usual < paid_ms * before / 4 and before > 1:
            self.phases_every //= 2
        if self.phases_every != before and self._strategy.rank == 0:
            self._log.event("monitor", "phases", self.phases_every, step=step, old_value=before)

    def _mark(self, phase: str, micro_batch: int) -> None:
        if self._in_step:
            self._timeline.enter(phase, micro_batch)
        if phase == "backward" and self._awaits_reducer is not None:
            self._read_reducer()

    def _aside(self, observer: BatchObserver) -> BatchObserver:
        timeline = self._timeline

        def timed(parts: Any) -> None:
            before = timeline.here
            timeline.enter("monitor")
            observer(parts)
            timeline.go(before)

        return timed

    def _finish_step(self) -> None:
        """What happened after the last step: an evaluation, a checkpoint, a pause."""
        now = self._now
        if len(self._timeline.boundaries) > 1:
            self._timeline.go(NOWHERE)
            now.boundaries = self._timeline.take()
            self._unread.append(now)
            self._now = _Step(step=now.step, begin=now.begin)
        else:
            self._timeline.take()
            self._timeline.here = NOWHERE

    def _resolve(self, *, wait: bool = False) -> None:
        """Make records of the steps whose readings can be looked at; ``wait``: of all that ever will."""
        while self._unread and self._clock.ready(self._unread[0].boundaries[-1][0]):
            self._write(self._unread.popleft())
        if wait:
            self._unread.clear()

    def _write(self, done: _Step) -> None:
        clock, rank = self._clock, self._strategy.rank
        starts = [clock.ms(done.begin, reading) for reading, _ in done.boundaries]
        for span in spans(starts, [place for _, place in done.boundaries]):
            self._log.append(PhaseRecord(step=done.step, rank=rank, **span._asdict()))
        if done.recorded:
            rows = records(done.calls, done.begin, clock, done.step, rank)
            for row in rows:
                self._log.append(row)
            waits = [(clock.ms(done.begin, a), clock.ms(done.begin, b)) for call in done.calls for a, b in call.waits]
            self._write_overlapped(done.step, rows, covered_ms(waits))
            if self._reducer is not None:
                self._awaits_reducer = done.step, _computed_ms(starts, done.boundaries)
        clock.recycle([reading for reading, _ in done.boundaries[1:-1]])  # the outer ones are others' too

    def _read_reducer(self) -> None:
        assert self._reducer is not None and self._awaits_reducer is not None
        (step, computed_ms), self._awaits_reducer = self._awaits_reducer, None
        if self._now.step != step + 1:
            return  # read too late: the figures are of another step
        row = self._reducer.read(step, self._strategy.rank, computed_ms)
        if row is not None:
            self._log.append(row)
            self._write_overlapped(step, [row], row.exposed_ms)

    def _write_overlapped(self, step: int, rows: list[CollectiveRecord], exposed_ms: float) -> None:
        """Communication that compute hid: calls were under way and nobody waited for one."""
        under_way = [(row.start_ms, row.start_ms + row.duration_ms) for row in rows]
        hidden_ms = covered_ms(under_way) - exposed_ms
        if under_way and hidden_ms > 0:
            start_ms = min(begin for begin, _ in under_way)
            place = {"step": step, "rank": self._strategy.rank, "phase": "overlapped", "micro_batch": -1}
            self._log.append(PhaseRecord(**place, start_ms=start_ms, duration_ms=hidden_ms))  # type: ignore[arg-type]


class _Last(StepObserver):
    """Comes after all other observers: what follows is training again."""

    def __init__(self, watch: PhaseWatch) -> None:
        self._watch = watch

    def reduced(self, step: int) -> None:
        self._watch._enter_in_step("optimizer")

    def ends(self, step: int) -> None:
        self._watch._ended()


def _computed_ms(starts: list[float], boundaries: list[tuple[Reading, Place]]) -> float:
    """When the last backward of a step had all its gradients: the boundary from backward to waiting."""
    found = [
        start
        for start, (_, place), (_, before) in zip(starts[1:], boundaries[1:], boundaries, strict=False)
        if place[0] == "communication" and before[0] in ("backward", "monitor")
    ]
    return found[-1] if found else starts[-1]


def _cost_of_a_boundary_ms(clock: Clock) -> float:
    """Milliseconds of the host that one boundary costs, measured."""
    timeline, count = Timeline(clock), 64
    began = time.perf_counter()
    for _ in range(count):
        timeline.enter("forward")
    cost_ms = (time.perf_counter() - began) * 1e3 / count
    clock.recycle([reading for reading, _ in timeline.take()])
    return cost_ms


def watched(
    spec: MonitorSpec, strategy: Strategy, log: RankLogWriter, device: str, others: list[StepObserver]
) -> list[StepObserver]:
    """``others`` with a ``PhaseWatch`` around them."""
    watch = PhaseWatch(spec, strategy, log, device=device)
    return [watch, *others, watch.last]
