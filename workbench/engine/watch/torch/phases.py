"""Logs how a rank spends its steps: the phases of every step, and the individual collectives of some steps.

``PhaseWatch`` is the first of a rank's observers and its ``step_end`` the last, so that the cost of the observers
between them is a phase of its own ("monitor"). Phase boundaries are recorded during the step; records are made when the
step is over, on a GPU one step later. Times count from the start of the rank's own step; clocks of different ranks are
never compared.

When steps are so short that recording exceeds its share of the budget, phases are recorded in every second, fourth,
eighth ... step only (``intervals``): rank 0 proposes the interval, and all ranks record the same steps.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from workbench.core.config import MonitorSpec
from workbench.core.records import CollectiveRecord, EventKind, PhaseRecord
from workbench.engine.base.batch import Batch
from workbench.engine.base.capabilities import DdpReduced, LocallyUpdated
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.parts import BatchObserver
from workbench.engine.base.strategy import PlannedRank
from workbench.engine.watch.host.clock import Clock, Reading, make_clock
from workbench.engine.watch.host.intervals import RecordingIntervals
from workbench.engine.watch.host.phase_spans import NO_PHASE, PhaseKey, PhaseRecorder, compute_spans, compute_union_ms
from workbench.engine.watch.torch.collectives import CollectiveRecorder, make_records, note_waits
from workbench.engine.watch.torch.ddp_reducer import DdpReducerReader
from workbench.rundir.log import RankLogWriter

_STEP_PHASES = frozenset({"data", "forward_backward", "optimizer"})
#: the phase that begins when the trainer enters one of its own parts of a step
_FIRST_PART = {"forward_backward": "transfer"}


@dataclass
class _Step:
    """A step whose clock readings have not been evaluated yet. ``recorded``: its collectives are recorded too."""

    step: int
    begin: Reading
    boundaries: list[tuple[Reading, PhaseKey]] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    recorded: bool = False


class PhaseWatch(StepObserver):
    """Logs a ``PhaseRecord`` per phase, and a ``CollectiveRecord`` per call, of the steps that ``intervals`` says.
    ``clock``: a replacement for tests."""

    def __init__(
        self,
        spec: MonitorSpec,
        strategy: PlannedRank,
        log: RankLogWriter,
        *,
        device: str = "cpu",
        clock: Clock | None = None,
    ) -> None:
        self.step_end = _StepEnd(self)
        self.intervals = RecordingIntervals(spec.budget)
        self._strategy = strategy
        self._log = log
        self._on_host = device == "cpu"
        self._clock = clock or make_clock(device)
        self._recorder = PhaseRecorder(self._clock)
        self._collectives = CollectiveRecorder(self._recorder, strategy.mesh, strategy.rank, split=self._on_host)
        self._now = _Step(step=0, begin=self._clock.now())
        self._in_step = False
        self._unread: deque[_Step] = deque()
        self._reducer: DdpReducerReader | None = None
        self._awaits_reducer: tuple[int, float] | None = None
        self._boundary_ms = _measure_boundary_ms(self._clock)
        self._attach()

    def _attach(self) -> None:
        strategy = self._strategy
        strategy.mark = self._mark
        strategy.aside = self._aside
        reducer = strategy.reducer() if isinstance(strategy, DdpReduced) else None
        if reducer is not None and strategy.mesh.dp * strategy.mesh.cp > 1:
            self._reducer = DdpReducerReader(reducer, strategy.mesh, on_host=self._on_host)
        self._collectives.install()

    def close(self) -> None:
        """Restore the wrapped functions and write the remaining records."""
        self._collectives.remove()
        self._finish_step()
        self._write_ready(wait=True)

    def propose(self, step: int) -> int:
        return self.intervals.proposal() if self._strategy.rank == 0 else 0

    def begins(self, step: int, watch: int) -> None:
        self.cost_ms = 0.0
        self._finish_step()
        self._write_ready()
        self._adopt(step, watch)
        recorded = self.intervals.records_collectives(step) or self._exchanges_weights()
        self._in_step = recorded or self.intervals.records_phases(step)
        begin = self._recorder.enter("monitor") if self._in_step else self._recorder.resume(NO_PHASE)
        self._now = _Step(step=step, begin=begin, recorded=recorded)
        self._collectives.recording = recorded
        self._began_s = time.perf_counter()

    def _exchanges_weights(self) -> bool:
        """Whether ranks that step by themselves exchange weights after this step: no interval would meet those steps as
        often as they come."""
        return isinstance(self._strategy, LocallyUpdated) and self._strategy.exchanges_weights()

    def phase(self, name: str) -> None:
        if name == "idle":
            self._recorder.resume(NO_PHASE)
            self._finish_step()
            self._write_ready()
        elif self._in_step or name not in _STEP_PHASES:
            self._recorder.enter(_FIRST_PART.get(name, name))

    def batch(self, step: int, batch: Batch) -> None:
        self._enter_in_step("monitor")

    def reduced(self, step: int) -> None:
        self._enter_in_step("monitor")

    def updated(self, step: int, skipped: bool) -> None:
        self._enter_in_step("monitor")

    def rolled_back(self, step: int) -> None:
        """Count the restoring, which is still going on, to the step that training has returned to."""
        self._finish_step()
        self._write_ready(wait=True)
        self._awaits_reducer = None
        self._now = _Step(step=step, begin=self._recorder.enter("checkpoint"))

    def _enter_in_step(self, phase: str) -> None:
        if self._in_step:
            self._recorder.enter(phase)

    def _end_step(self) -> None:
        """End the step after all observers. Phases between this step and the next are timed from this step's start."""
        if not self._in_step:
            return
        end = self._recorder.resume(NO_PHASE)
        step_ms = (time.perf_counter() - self._began_s) * 1e3
        began = time.thread_time()
        self._in_step = self._collectives.recording = False
        now = self._now
        now.boundaries, now.calls = self._recorder.take(), self._collectives.take()
        self._unread.append(now)
        self._now = _Step(step=now.step, begin=now.begin)
        self._recorder.boundaries.append((end, NO_PHASE))
        self._write_ready()
        self.cost_ms = (time.thread_time() - began) * 1e3 + self._boundary_ms * len(now.boundaries)
        if not now.recorded:
            self.intervals.account_phases(self.cost_ms, step_ms)
        elif self._on_host:
            self.intervals.account_collectives(self.cost_ms, step_ms)

    def _adopt(self, step: int, watch: int) -> None:
        before = self.intervals.phases_every
        self.intervals.adopt(watch)
        after = self.intervals.phases_every
        if after != before and self._strategy.rank == 0:
            self._log.event(EventKind.MONITOR, "phases", after, step=step, old_value=before)

    def _mark(self, phase: str, micro_batch: int) -> None:
        if self._in_step:
            self._recorder.enter(phase, micro_batch)
        if phase == "backward" and self._awaits_reducer is not None:
            self._read_reducer()

    def _aside(self, observer: BatchObserver) -> BatchObserver:
        recorder = self._recorder

        def timed(parts: Any) -> None:
            before = recorder.current
            recorder.enter("monitor")
            observer(parts)
            recorder.resume(before)

        return timed

    def _finish_step(self) -> None:
        """Store the phases that followed the last step: an evaluation, a checkpoint, a pause."""
        now = self._now
        if len(self._recorder.boundaries) > 1:
            self._recorder.resume(NO_PHASE)
            now.boundaries = self._recorder.take()
            self._unread.append(now)
            self._now = _Step(step=now.step, begin=now.begin)
        else:
            self._recorder.take()
            self._recorder.current = NO_PHASE

    def _write_ready(self, *, wait: bool = False) -> None:
        """Write the records of the steps whose readings are ready; ``wait``: drop the others."""
        while self._unread and self._clock.ready(self._unread[0].boundaries[-1][0]):
            self._write(self._unread.popleft())
        if wait:
            self._unread.clear()

    def _write(self, done: _Step) -> None:
        clock, rank = self._clock, self._strategy.rank
        starts = [clock.elapsed_ms(done.begin, reading) for reading, _ in done.boundaries]
        for span in compute_spans(starts, [place for _, place in done.boundaries]):
            self._log.append(PhaseRecord(step=done.step, rank=rank, **span._asdict()))
        if done.recorded:
            note_waits(done.calls, _find_waits_after_backward(done.boundaries), done.begin, clock)
            rows = make_records(done.calls, done.begin, clock, done.step, rank)
            for row in rows:
                self._log.append(row)
            waits = [
                (clock.elapsed_ms(done.begin, a), clock.elapsed_ms(done.begin, b))
                for call in done.calls
                for a, b in call.waits
            ]
            self._write_overlapped(done.step, rows, compute_union_ms(waits))
            if self._reducer is not None:
                self._awaits_reducer = done.step, _find_compute_end_ms(starts, done.boundaries)
        clock.recycle(
            [reading for reading, _ in done.boundaries[1:-1]]
        )  # the outer readings are shared with neighbours

    def _read_reducer(self) -> None:
        assert self._reducer is not None and self._awaits_reducer is not None
        (step, computed_ms), self._awaits_reducer = self._awaits_reducer, None
        if self._now.step != step + 1:
            return  # read too late: DDP's times belong to another step
        row = self._reducer.read(step, self._strategy.rank, computed_ms)
        if row is not None:
            self._log.append(row)
            self._write_overlapped(step, [row], row.exposed_ms)

    def _write_overlapped(self, step: int, rows: list[CollectiveRecord], exposed_ms: float) -> None:
        """Log the communication hidden by computation: time in which calls were active and the rank waited for none."""
        under_way = [(row.start_ms, row.start_ms + row.duration_ms) for row in rows]
        hidden_ms = compute_union_ms(under_way) - exposed_ms
        if under_way and hidden_ms > 0:
            start_ms = min(begin for begin, _ in under_way)
            place = {"step": step, "rank": self._strategy.rank, "phase": "overlapped", "micro_batch": -1}
            self._log.append(PhaseRecord(**place, start_ms=start_ms, duration_ms=hidden_ms))  # type: ignore[arg-type]


class _StepEnd(StepObserver):
    """The last observer: ends the phase "monitor" after the update, and ends the step."""

    def __init__(self, watch: PhaseWatch) -> None:
        self._watch = watch

    def reduced(self, step: int) -> None:
        self._watch._enter_in_step("optimizer")

    def ends(self, step: int) -> None:
        self._watch._end_step()


def _find_waits_after_backward(boundaries: list[tuple[Reading, PhaseKey]]) -> list[tuple[Reading, Reading]]:
    """The intervals of communication that follow backward computation, in which DDP waits."""
    return [
        (reading, ended)
        for (_, before), (reading, place), (ended, _) in zip(boundaries, boundaries[1:], boundaries[2:], strict=False)
        if place[0] == "communication" and before[0] in ("backward", "monitor")
    ]


def _find_compute_end_ms(starts: list[float], boundaries: list[tuple[Reading, PhaseKey]]) -> float:
    """When the step's backward computation ended, in ms: the last boundary from the backward pass to communication."""
    found = [
        start
        for start, (_, place), (_, before) in zip(starts[1:], boundaries[1:], boundaries, strict=False)
        if place[0] == "communication" and before[0] in ("backward", "monitor")
    ]
    return found[-1] if found else starts[-1]


def _measure_boundary_ms(clock: Clock) -> float:
    """Measure the host time in ms that one phase boundary costs."""
    recorder, count = PhaseRecorder(clock), 64
    began = time.perf_counter()
    for _ in range(count):
        recorder.enter("forward")
    cost_ms = (time.perf_counter() - began) * 1e3 / count
    clock.recycle([reading for reading, _ in recorder.take()])
    return cost_ms


def add_phase_watch(
    spec: MonitorSpec, strategy: PlannedRank, log: RankLogWriter, device: str, others: list[StepObserver]
) -> list[StepObserver]:
    """Return ``others`` between a ``PhaseWatch`` and its ``step_end``."""
    watch = PhaseWatch(spec, strategy, log, device=device)
    return [watch, *others, watch.step_end]
