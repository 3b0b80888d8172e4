"""Writes a run as a timeline for Perfetto (https://ui.perfetto.dev, which opens it locally) and chrome://tracing.

The file is JSON in the Trace Event Format. Each rank is a process. Each of its lanes is a thread: steps, phases,
communication that overlaps with computation, and collectives. Spans of one thread must nest, so spans of a lane that
overlap without nesting are put into further threads. Times are in microseconds since the start of the first step. As
in the timeline of the panel, the waiting within a phase is drawn after the work of the phase.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.records import SESSION_RANK
from workbench.export.source import ExportSource
from workbench.telemetry.phases import in_turn

FILE = "trace.json"
#: thread numbers of the lanes; the further threads of a lane follow its number
_LANE_SIZE = 100
_STEPS, _PHASES, _OVERLAPPED, _COLLECTIVES = 0, 100, 200, 300
_LANES = {_STEPS: "steps", _PHASES: "phases", _OVERLAPPED: "overlapped", _COLLECTIVES: "collectives"}
#: phases that run at the same time as others
_CONCURRENT_PHASES = ("overlapped",)
#: kinds of events that are left out
_OMITTED_KINDS = ("log",)


def write(source: ExportSource, out: Path) -> Path:
    """Write ``trace.json`` into the folder ``out`` and return the path of the file."""
    path = out / FILE
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "otherData": ')
        file.write(json.dumps({"run": source.path.name, "plan": source.spec.plan.describe()}))
        file.write(', "traceEvents": [\n')
        for number, event in enumerate(trace_events(source)):
            file.write((",\n" if number else "") + json.dumps(event, allow_nan=False))
        file.write("\n]}\n")
    return path


def trace_events(source: ExportSource) -> Iterator[dict[str, Any]]:
    """The events of the run in the Trace Event Format."""
    steps = source.arrow("steps").select(["time", "step", "rank", "step_time_ms", "loss", "tokens"]).to_pylist()
    start_us = {(row["rank"], row["step"]): row["time"] * 1e6 - row["step_time_ms"] * 1e3 for row in steps}
    origin = min(start_us.values(), default=0.0)
    threads: dict[int, set[int]] = {}
    spans = [*_steps(steps), *_phases(source), *_collectives(source)]
    for rank, thread, span in _assign_threads(spans, start_us, origin):
        threads.setdefault(rank, set()).add(thread)
        yield {"ph": "X", "pid": rank, "tid": thread, **span}
    yield from _instants_and_counters(source, origin)
    yield from _thread_names(source, threads)


#: lane, rank, step, start in ms since the start of the step, event with its duration ``dur`` in us
_Span = tuple[int, int, int, float, dict[str, Any]]


def _make_span(lane: int, row: dict[str, Any], name: str, start_ms: float, duration_ms: float, **args: Any) -> _Span:
    args = {key: value for key, value in args.items() if not isinstance(value, float) or math.isfinite(value)}
    event = {
        "name": name,
        "cat": _LANES[lane],
        "dur": max(0.0, duration_ms) * 1e3,
        "args": {"step": row["step"], **args},
    }
    return lane, row["rank"], row["step"], start_ms, event


def _steps(rows: list[dict[str, Any]]) -> Iterator[_Span]:
    for row in rows:
        args = {"loss": row["loss"], "tokens": row["tokens"]}
        yield _make_span(_STEPS, row, f"step {row['step']}", 0.0, row["step_time_ms"], **args)


def _phases(source: ExportSource) -> Iterator[_Span]:
    table = source.arrow("phases")
    starts, _ = in_turn({name: table[name].to_numpy() for name in table.column_names})
    for row, start_ms in zip(table.to_pylist(), starts.tolist(), strict=True):
        lane = _OVERLAPPED if row["phase"] in _CONCURRENT_PHASES else _PHASES
        args = {"micro_batch": row["micro_batch"]} if row["micro_batch"] >= 0 else {}
        yield _make_span(lane, row, row["phase"], start_ms, row["duration_ms"], **args)


def _collectives(source: ExportSource) -> Iterator[_Span]:
    for row in source.arrow("collectives").to_pylist():
        args = {name: row[name] for name in ("group", "group_size", "bytes", "exposed_ms")}
        yield _make_span(_COLLECTIVES, row, row["kind"], row["start_ms"], row["duration_ms"], **args)


def _assign_threads(
    spans: list[_Span], start_us: dict[tuple[int, int], float], origin: float
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Each span as (rank, thread, event): the first thread of its lane where it nests in or follows the other spans.

    ``start_us``: (rank, step) -> start of the step. ``origin``: the time that becomes 0. Both are in microseconds.
    """
    timed_spans = []
    for lane, rank, step, start_ms, event in spans:
        if (rank, step) in start_us:  # the start of a step that was not completed is not known
            timed_spans.append((rank, lane, start_us[rank, step] - origin + start_ms * 1e3, event))
    timed_spans.sort(key=lambda span: (span[0], span[1], span[2], -span[3]["dur"]))
    open_ends: dict[tuple[int, int], list[float]] = {}
    for rank, lane, ts, event in timed_spans:
        end = ts + event["dur"]
        for thread in range(lane, lane + _LANE_SIZE):
            ends = open_ends.setdefault((rank, thread), [])
            while ends and ends[-1] <= ts + 1e-3:  # allow for a nanosecond of rounding
                ends.pop()
            if not ends or end <= ends[-1] + 1e-3:
                ends.append(end)
                yield rank, thread, {**event, "ts": round(ts, 3), "dur": round(event["dur"], 3)}
                break


def _instants_and_counters(source: ExportSource, origin: float) -> Iterator[dict[str, Any]]:
    """The events of the run as instants, and its loss and throughput as counters of rank 0."""
    for row in source.events:
        if row["kind"] not in _OMITTED_KINDS:
            name = f"{row['kind']} {row['name']}"
            value = json.dumps(row["value"])[:1000]
            rank = max(0, row["rank"]) if row["rank"] == SESSION_RANK else row["rank"]
            yield {
                "ph": "i", "s": "p", "name": name, "cat": row["kind"], "pid": rank, "tid": _STEPS,
                "ts": round(row["time"] * 1e6 - origin, 3), "args": {"step": row["step"], "value": value},
            }  # fmt: skip
    columns = (source.metrics[name].tolist() for name in ("time", "loss", "tps"))
    for time, loss, tps in zip(*columns, strict=True):
        for name, value in (("loss", loss), ("tokens/s/device", tps)):
            if np.isfinite(value):
                ts = round(time * 1e6 - origin, 3)
                yield {"ph": "C", "name": name, "pid": 0, "tid": _STEPS, "ts": ts, "args": {name: value}}


def _thread_names(source: ExportSource, threads: dict[int, set[int]]) -> Iterator[dict[str, Any]]:
    """The names and the order of ranks and lanes. ``threads``: rank -> its threads."""
    for rank, threads_of_rank in sorted(threads.items()):
        at = source.mesh.coordinates(rank) if rank < source.mesh.world_size else None
        of_sequences = f", cp {at.cp}" if source.mesh.cp > 1 and at else ""
        coordinates = f" (dp {at.dp}, pp {at.pp}{of_sequences}, tp {at.tp})" if at else ""
        yield _metadata("process_name", rank, 0, {"name": f"rank {rank}{coordinates}"})
        yield _metadata("process_sort_index", rank, 0, {"sort_index": rank})
        for thread in sorted(threads_of_rank):
            lane, index = thread // _LANE_SIZE * _LANE_SIZE, thread % _LANE_SIZE
            yield _metadata("thread_name", rank, thread, {"name": _LANES[lane] + (f" {index + 1}" if index else "")})
            yield _metadata("thread_sort_index", rank, thread, {"sort_index": thread})


def _metadata(name: str, rank: int, thread: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": rank, "tid": thread, "ts": 0, "args": args}
