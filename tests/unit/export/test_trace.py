"""The exported timeline is valid in the Trace Event Format and agrees with the log."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.rich_run import PHASES, STEP_S, STEPS
from workbench.export import export

REQUIRED = {
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid"},
    "M": {"name", "ph", "pid", "args"},
    "i": {"name", "ph", "ts", "pid", "tid", "s"},
    "C": {"name", "ph", "ts", "pid", "args"},
}


@pytest.fixture(scope="module")
def events(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = export(run, "trace", tmp_path_factory.mktemp("trace"))

    def no_constant(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    data = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constant)
    assert data["displayTimeUnit"] == "ms"
    found: list[dict[str, Any]] = data["traceEvents"]
    return found


def test_events_have_the_required_fields(events: list[dict[str, Any]]) -> None:
    assert {event["ph"] for event in events} == set(REQUIRED)
    for event in events:
        assert REQUIRED[event["ph"]] <= set(event), event
        assert isinstance(event["pid"], int) and event.get("dur", 0) >= 0


def test_spans_of_a_lane_nest(events: list[dict[str, Any]]) -> None:
    lanes = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            lanes[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in lanes.values():
        for a in spans:
            for b in spans:
                assert a[1] <= b[0] + 2e-3 or b[1] <= a[0] + 2e-3 or (a[0] <= b[0] and b[1] <= a[1] + 2e-3) or (
                    b[0] <= a[0] and a[1] <= b[1] + 2e-3
                )  # fmt: skip


def test_phases_keep_their_logged_times_and_waiting_follows_work(
    events: list[dict[str, Any]],
) -> None:
    for rank in range(2):
        for name, logged, ms in PHASES:
            start = 35.0 if name == "communication" else logged
            found = [e for e in events if e["ph"] == "X" and e["pid"] == rank and e["name"] == name]
            assert [e["dur"] for e in found] == [pytest.approx(1e3 * ms)] * STEPS
            expected = [1e6 * STEP_S * step + 1e3 * start for step in range(STEPS)]
            assert [e["ts"] for e in found] == pytest.approx(
                expected, abs=1.0
            )  # a double holds the current time to about a microsecond
    total = sum(e["dur"] for e in events if e["ph"] == "X" and e["cat"] == "steps" and e["pid"] == 0)
    assert total == pytest.approx(1e6 * STEP_S * STEPS)


def test_lanes_are_named(events: list[dict[str, Any]]) -> None:
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(names[0, tid] for _, tid in names if (0, tid) in names)[::2] and {
        name for (pid, _), name in names.items() if pid == 0
    } == {"steps", "phases", "overlapped", "collectives", "collectives 2"}
    processes = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert processes == ["rank 0 (dp 0, pp 0, tp 0)", "rank 1 (dp 0, pp 0, tp 1)"]
    collectives = [e for e in events if e["ph"] == "X" and e["name"] == "all_reduce"]
    assert len(collectives) == 2 * 2 * STEPS and collectives[0]["args"]["bytes"] == 4096
    marks = [e["name"] for e in events if e["ph"] == "i"]
    assert "validation loss" in marks and "state finished" in marks
