"""Phases by a clock made up by hand: what they mean, that nothing waits for a device, that it costs little."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from workbench.core.config import MonitorSpec
from workbench.core.mesh import Mesh
from workbench.core.records import PhaseRecord
from workbench.engine.base.strategy import unmarked
from workbench.engine.watch.host import intervals
from workbench.engine.watch.host.clock import EventClock, HostClock
from workbench.engine.watch.host.phase_spans import NO_PHASE, PhaseRecorder, compute_spans, compute_union_ms
from workbench.engine.watch.torch import phases
from workbench.engine.watch.torch.collectives import _Call, note_waits
from workbench.engine.watch.torch.phases import PhaseWatch


def test_phases_are_what_lies_between_boundaries() -> None:
    places = [("data", -1), ("forward", 0), ("communication", 0), ("forward", 0), NO_PHASE, ("evaluate", -1), NO_PHASE]
    found = {span.phase: (span.start_ms, span.duration_ms) for span in compute_spans([0, 2, 5, 6, 9, 11, 20], places)}
    assert found == {"data": (0, 2), "forward": (2, 6), "communication": (5, 1), "evaluate": (11, 9)}


def test_waiting_is_told_apart_by_the_work_that_it_interrupts_or_follows() -> None:
    visits = [
        ("data", 1.0), ("forward", 2.0), ("communication", 0.5), ("forward", 3.0), ("monitor", 0.25), ("backward", 4.0),
        ("communication", 2.5), ("backward", 1.0), ("monitor", 0.5), ("communication", 1.5), ("optimizer", 0.75),
        ("communication", 3.5), ("optimizer", 0.25),
    ]  # fmt: skip
    starts = np.cumsum([0, *(length for _, length in visits)]).tolist()
    assert compute_spans(starts, [*((phase, -1) for phase, _ in visits), NO_PHASE]) == [
        ("data", -1, 0.0, 1.0), ("forward", -1, 1.0, 5.0), ("communication", -1, 3.0, 0.5), ("monitor", -1, 6.5, 0.75),
        ("backward", -1, 6.75, 5.0), ("communication", -1, 10.75, 4.0), ("optimizer", -1, 16.25, 1.0),
        ("communication", -1, 17.0, 3.5),
    ]  # fmt: skip


PHASES = ("data", "forward", "backward", "optimizer", "communication", "bubble", "evaluate", "monitor", "")


@given(st.lists(st.tuples(st.sampled_from(PHASES), st.integers(-1, 1), st.integers(0, 9)), max_size=30))
def test_spans_are_what_a_look_at_every_visit_says(visits: list[tuple[str, int, int]]) -> None:
    places = [(phase, micro) if phase else NO_PHASE for phase, micro, _ in visits]
    starts = [float(sum(length for *_, length in visits[:i])) for i in range(len(visits) + 1)]
    groups: dict[Any, list[int]] = {}
    for i, (phase, micro) in enumerate(places):
        before = [place for place in places[:i] if place[0] in ("data", "forward", "backward", "optimizer")]
        waits = phase in ("communication", "bubble", "evaluate")
        if phase:
            groups.setdefault((phase, micro, *(before[-1:] if waits else ())), []).append(i)
    assert compute_spans(starts, [*places, NO_PHASE]) == [
        (*places[found[0]], starts[found[0]], sum(visits[i][2] for i in found)) for found in groups.values()
    ]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 20)), max_size=12))
def test_covered_time_is_the_measure_of_the_union(pairs: list[tuple[float, float]]) -> None:
    intervals = [(begin, begin + length) for begin, length in pairs]
    grid = np.linspace(0, 120, 12_001)[:-1] + 0.005
    inside = np.zeros(grid.size, dtype=bool)
    for begin, end in intervals:
        inside |= (grid >= begin) & (grid < end)
    assert compute_union_ms(intervals) == pytest.approx(inside.mean() * 120, abs=0.02 * len(intervals) + 1e-6)


class Device:
    """A GPU that runs behind: its events happen only when ``catch_up`` is called."""

    def __init__(self) -> None:
        self.time = 0.0
        self.made = 0
        self.recorded: list[Event] = []

    def event(self) -> Event:
        self.made += 1
        return Event(self)

    def catch_up(self) -> None:
        for event in self.recorded:
            event.happened = True
        self.recorded.clear()


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self) -> None:
        self.at, self.happened = self.device.time, False
        self.device.time += 1.0
        self.device.recorded.append(self)

    def query(self) -> bool:
        return self.happened

    def elapsed_time(self, end: Event) -> float:
        assert self.happened and end.happened, "would wait for the device"
        return end.at - self.at


class Log:
    def __init__(self) -> None:
        self.records: list[Any] = []
        self.events: list[tuple[Any, ...]] = []

    def append(self, record: Any) -> None:
        self.records.append(record)

    def event(self, *what: Any, **more: Any) -> None:
        self.events.append(what)


class Strategy:
    mesh, rank = Mesh(), 0
    mark: Any = staticmethod(unmarked)
    aside: Any = None

    def reducer(self) -> None:
        return None


def one_step(watch: PhaseWatch, strategy: Strategy, step: int) -> None:
    watch.begins(step, watch.propose(step - 1))
    watch.phase("data")
    watch.batch(step, None)
    watch.phase("forward_backward")
    strategy.mark("forward", -1)
    strategy.mark("backward", -1)
    watch.phase("optimizer")
    watch.reduced(step)
    watch.step_end.reduced(step)
    watch.updated(step, False)
    watch.step_end.ends(step)


def test_events_of_a_device_are_looked_at_when_they_have_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "PHASES_SHARE", math.inf)  # these steps are far too short
    device, log, strategy = Device(), Log(), Strategy()
    watch = PhaseWatch(MonitorSpec(), strategy, log, device="cuda", clock=EventClock(device.event))  # type: ignore[arg-type]
    one_step(watch, strategy, 1)
    assert log.records == [], "nothing waited"
    device.catch_up()
    one_step(watch, strategy, 2)
    assert {record.step for record in log.records} == {1}
    assert {r.phase: r.duration_ms for r in log.records} == {
        "monitor": 4.0, "data": 1.0, "transfer": 1.0, "forward": 1.0, "backward": 1.0, "optimizer": 2.0
    }  # fmt: skip
    for step in range(3, 40):
        device.catch_up()
        one_step(watch, strategy, step)
    made = device.made
    for step in range(40, 80):
        device.catch_up()
        one_step(watch, strategy, step)
    assert device.made - made <= 2 * 40, "events are used again, but for the first and the last of a step"
    device.catch_up()
    watch.close()
    assert {record.step for record in log.records} == set(range(1, 80))


def test_what_comes_between_steps_belongs_to_the_step_before() -> None:
    log, strategy = Log(), Strategy()
    watch = PhaseWatch(MonitorSpec(), strategy, log)  # type: ignore[arg-type]
    try:
        one_step(watch, strategy, 1)
        watch.phase("evaluate")
        strategy.mark("forward", -1)  # an evaluation's own forward pass is no phase of training
        one_step(watch, strategy, 2)
        watch.phase("checkpoint")
        watch.phase("paused")
        watch.phase("idle")
    finally:
        watch.close()
    phases = [(record.step, record.phase) for record in log.records if isinstance(record, PhaseRecord)]
    assert phases[6] == (1, "evaluate") and phases[-2:] == [(2, "checkpoint"), (2, "paused")]
    assert len(phases) == 2 * 6 + 3
    evaluate = next(record for record in log.records if record.phase == "evaluate")
    assert evaluate.start_ms >= max(r.start_ms for r in log.records if r.step == 1 and r is not evaluate)


def test_a_step_that_fails_half_way_is_written_and_everything_undone() -> None:
    before = {name: getattr(dist, name) for name in ("all_reduce", "batch_isend_irecv", "barrier")}
    log, strategy = Log(), Strategy()
    watch = PhaseWatch(MonitorSpec(), strategy, log)  # type: ignore[arg-type]
    assert dist.all_reduce is not before["all_reduce"]
    watch.begins(1, 0)
    watch.phase("data")
    watch.close()
    assert [record.phase for record in log.records] == ["monitor", "data"]
    assert {name: getattr(dist, name) for name in before} == before


def test_gradients_that_are_watched_are_no_training() -> None:
    log, strategy = Log(), Strategy()
    watch = PhaseWatch(MonitorSpec(), strategy, log)  # type: ignore[arg-type]
    seen = []
    try:
        observer = strategy.aside(seen.append)
        watch.begins(1, 0)
        strategy.mark("backward", 2)
        observer("part")
        assert watch._recorder.current == ("backward", 2) and seen == ["part"]
    finally:
        watch.close()


def test_records_that_cost_too_much_come_more_rarely() -> None:
    log, strategy = Log(), Strategy()
    watch = PhaseWatch(MonitorSpec(budget=1e-6), strategy, log)  # type: ignore[arg-type]
    try:
        for step in range(1, 4):
            one_step(watch, strategy, step)
    finally:
        watch.close()
    watch.intervals.adopt(watch.propose(3))
    assert watch.intervals.collectives_every == 1280
    assert watch.cost_ms > 0


def test_phases_of_steps_too_short_for_them_come_more_rarely_and_then_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host whose clocks stand still but where a step says so: making the records costs 1 ms, or nothing."""
    log, strategy, clocks = Log(), Strategy(), {"thread": 0.0, "host": 0.0, "cost": 1e-3}

    def thread_time() -> float:
        clocks["thread"] += clocks["cost"]
        return clocks["thread"]

    monkeypatch.setattr(phases.time, "thread_time", thread_time)
    monkeypatch.setattr(phases.time, "perf_counter", lambda: clocks["host"])
    watch = PhaseWatch(MonitorSpec(), strategy, log)  # type: ignore[arg-type]
    monkeypatch.setattr(watch.intervals, "records_collectives", lambda step: False)  # these are steps of their own

    def take(steps: range, step_ms: float) -> set[int]:
        before = len(log.records)
        for step in steps:
            watch.begins(step, watch.propose(step - 1))
            watch.phase("data")
            clocks["host"] += step_ms / 1e3
            strategy.mark("backward", -1)
            watch.step_end.reduced(step)
            watch.step_end.ends(step)
        return {record.step for record in log.records[before:]}

    try:
        assert take(range(1, 5), 1000.0) == {1, 2, 3, 4}, "1.6 ms are less than 0.4 % of a second"
        assert watch.intervals.phases_every == 1 and not log.events
        take(range(5, 100), 60.0)
        assert take(range(100, 164), 60.0) == {104, 112, 120, 128, 136, 144, 152, 160}, "0.24 ms a step pay for it"
        watch.phase("evaluate")
        assert take(range(164, 168), 60.0) == {163}, "what comes between steps is told of any"
        clocks["cost"] = 1e-6
        take(range(168, 400), 60.0)
        assert take(range(400, 410), 60.0) == set(range(400, 410))
        assert [what[2] for what in log.events] == [2, 4, 8, 4, 2, 1]
    finally:
        watch.close()


def test_a_timeline_knows_where_it_is() -> None:
    recorder = PhaseRecorder(HostClock())
    steps = [random.choice(["forward", "backward"]) for _ in range(5)]
    for name in steps:
        recorder.enter(name)
    assert recorder.current == (steps[-1], -1) and [p[0] for _, p in recorder.take()] == steps
    assert recorder.take() == []


class Seconds:
    """A clock whose readings are numbers."""

    def elapsed_ms(self, begin, end):
        return (end - begin) * 1e3


def test_a_wait_for_a_future_counts_where_backward_waits_for_it():
    """DDP waits for what a communication hook returned when the gradients are computed, from second 4 to 9 here."""
    early, late = _Call("all_reduce", "", 2, 8, 1.0, posted=1.5), _Call("all_reduce", "", 2, 8, 3.0, posted=3.5)
    waited = _Call("all_reduce", "", 2, 8, 2.0, waits=[(2.0, 5.0)])
    early.done, late.done, waited.done = 3.8, 8.0, 5.0
    early.by_future = late.by_future = True
    note_waits([early, late, waited], [(4.0, 9.0)], 0.0, Seconds())
    assert (early.waits, late.waits, waited.waits) == ([], [(4.0, 8.0)], [(2.0, 5.0)])
