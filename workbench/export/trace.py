"""A timeline for Perfetto (https://ui.perfetto.dev opens the file on your machine) and chrome://tracing.

The JSON of "Trace Event Format": a process per rank, a thread per lane: steps, phases, communication that hides behind
compute, and collectives. What overlaps within a lane gets another one beneath, as events of one thread must nest. Times
are microseconds since the first step began. Phases are those that the timeline draws: waiting within one comes after
its work.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.records import SESSION_RANK
from workbench.export.source import Source
from workbench.telemetry.phases import in_turn

FILE = "trace.json"
_STEPS, _PHASES, _HIDDEN, _COLLECTIVES = 0, 100, 200, 300
_LANES = {_STEPS: "steps", _PHASES: "phases", _HIDDEN: "overlapped", _COLLECTIVES: "collectives"}
#: phases that run beside the others
_BESIDE = ("overlapped",)
_NOT_SHOWN = ("log",)


def write(source: Source, out: Path) -> Path:
    """Write ``trace.json`` into ``out``; returns the file."""
    path = out / FILE
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "otherData": ')
        file.write(json.dumps({"run": source.path.name, "plan": source.spec.plan.describe()}))
        file.write(', "traceEvents": [\n')
        for number, event in enumerate(events(source)):
            file.write((",\n" if number else "") + json.dumps(event, allow_nan=False))
        file.write("\n]}\n")
    return path


def events(source: Source) -> Iterator[dict[str, Any]]:
    """The trace events of a run."""
    steps = source.arrow("steps").select(["time", "step", "rank", "step_time_ms", "loss", "tokens"]).to_pylist()
    begun = {(row["rank"], row["step"]): row["time"] * 1e6 - row["step_time_ms"] * 1e3 for row in steps}
    origin = min(begun.values(), default=0.0)
    used: dict[int, set[int]] = {}
    spans = [*_steps(steps), *_phases(source), *_collectives(source)]
    for rank, lane, span in _in_lanes(spans, begun, origin):
        used.setdefault(rank, set()).add(lane)
        yield {"ph": "X", "pid": rank, "tid": lane, **span}
    yield from _marks(source, origin)
    yield from _names(source, used)


_Span = tuple[int, int, int, float, dict[str, Any]]  # lane, rank, step, start_ms, event with dur


def _span(lane: int, row: dict[str, Any], name: str, start: float, ms: float, **args: Any) -> _Span:
    args = {key: value for key, value in args.items() if not isinstance(value, float) or math.isfinite(value)}
    event = {"name": name, "cat": _LANES[lane], "dur": max(0.0, ms) * 1e3, "args": {"step": row["step"], **args}}
    return lane, row["rank"], row["step"], start, event


def _steps(rows: list[dict[str, Any]]) -> Iterator[_Span]:
    for row in rows:
        more = {"loss": row["loss"], "tokens": row["tokens"]}
        yield _span(_STEPS, row, f"step {row['step']}", 0.0, row["step_time_ms"], **more)


def _phases(source: Source) -> Iterator[_Span]:
    table = source.arrow("phases")
    starts, _ = in_turn({name: table[name].to_numpy() for name in table.column_names})
    for row, start_ms in zip(table.to_pylist(), starts.tolist(), strict=True):
        lane = _HIDDEN if row["phase"] in _BESIDE else _PHASES
        more = {"micro_batch": row["micro_batch"]} if row["micro_batch"] >= 0 else {}
        yield _span(lane, row, row["phase"], start_ms, row["duration_ms"], **more)


def _collectives(source: Source) -> Iterator[_Span]:
    for row in source.arrow("collectives").to_pylist():
        more = {name: row[name] for name in ("group", "group_size", "bytes", "exposed_ms")}
        yield _span(_COLLECTIVES, row, row["kind"], row["start_ms"], row["duration_ms"], **more)


def _in_lanes(
    spans: list[_Span], begun: dict[tuple[int, int], float], origin: float
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Each span with its time and a lane in which it nests: inside the one that is open there, or after it."""
    placed = []
    for lane, rank, step, start, event in spans:
        if (rank, step) in begun:  # a step that was not finished has no clock
            placed.append((rank, lane, begun[rank, step] - origin + start * 1e3, event))
    placed.sort(key=lambda each: (each[0], each[1], each[2], -each[3]["dur"]))
    open_until: dict[tuple[int, int], list[float]] = {}
    for rank, lane, ts, event in placed:
        end = ts + event["dur"]
        for row in range(lane, lane + 100):
            ends = open_until.setdefault((rank, row), [])
            while ends and ends[-1] <= ts + 1e-3:  # a nanosecond of rounding is no overlap
                ends.pop()
            if not ends or end <= ends[-1] + 1e-3:
                ends.append(end)
                yield rank, row, {**event, "ts": round(ts, 3), "dur": round(event["dur"], 3)}
                break


def _marks(source: Source, origin: float) -> Iterator[dict[str, Any]]:
    """Events of the run as marks, and the loss as a counter of the first rank."""
    for row in source.events:
        if row["kind"] not in _NOT_SHOWN:
            name = f"{row['kind']} {row['name']}"
            value = json.dumps(row["value"])[:1000]
            rank = max(0, row["rank"]) if row["rank"] == SESSION_RANK else row["rank"]
            yield {
                "ph": "i", "s": "p", "name": name, "cat": row["kind"], "pid": rank, "tid": _STEPS,
                "ts": round(row["time"] * 1e6 - origin, 3), "args": {"step": row["step"], "value": value},
            }  # fmt: skip
    columns = (source.metrics[name].tolist() for name in ("time", "loss", "tps"))
    for when, loss, tps in zip(*columns, strict=True):
        for name, value in (("loss", loss), ("tokens/s/device", tps)):
            if np.isfinite(value):
                ts = round(when * 1e6 - origin, 3)
                yield {"ph": "C", "name": name, "pid": 0, "tid": _STEPS, "ts": ts, "args": {name: value}}


def _names(source: Source, used: dict[int, set[int]]) -> Iterator[dict[str, Any]]:
    for rank, lanes in sorted(used.items()):
        here = source.mesh.coordinates(rank) if rank < source.mesh.world_size else None
        where = f" (dp {here.dp}, pp {here.pp}, tp {here.tp})" if here else ""
        yield _meta("process_name", rank, 0, {"name": f"rank {rank}{where}"})
        yield _meta("process_sort_index", rank, 0, {"sort_index": rank})
        for lane in sorted(lanes):
            name = _LANES[lane // 100 * 100] + (f" {lane % 100 + 1}" if lane % 100 else "")
            yield _meta("thread_name", rank, lane, {"name": name})
            yield _meta("thread_sort_index", rank, lane, {"sort_index": lane})


def _meta(name: str, rank: int, lane: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": rank, "tid": lane, "ts": 0, "args": args}
