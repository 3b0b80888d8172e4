"""What the kernel tells about a process, from ``/proc``: whether it runs, waits, is stopped, swaps or gets no core."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

_PROC = Path("/proc")
#: programs that build code: what a rank waits for when it compiles a kernel or an extension
_BUILDERS = ("nvcc", "cicc", "ptxas", "ninja", "cc1plus", "cc1", "g++", "gcc", "clang", "clang++", "cc", "c++", "ld")


@dataclass(frozen=True, kw_only=True)
class ProcessCounters:
    """Counters of a process at ``time`` (``time.monotonic``), all of them since its start, in seconds.

    ``state``: the letter of ``/proc/PID/stat`` (R: runs, S: waits, D: waits for a disk, T: stopped, t: held by a
    tracer, Z: ended). ``cpu_s``: processor time of all threads; ``delay_s``: how long they could run and had no core;
    ``major_faults``: pages that were read from a disk. ``swap_bytes``: memory that was moved out to a disk.
    ``tracer``: process id of a debugger that is attached, or 0. ``building``: names of compilers among its children.
    """

    time: float
    state: str
    cpu_s: float
    delay_s: float
    major_faults: int
    swap_bytes: int = 0
    tracer: int = 0
    building: tuple[str, ...] = ()


def read_counters(pid: int) -> ProcessCounters:
    """Reads the counters of a process. Raises ``OSError`` when there is none, or it is another user's."""
    directory = _PROC / str(pid)
    text = (directory / "stat").read_text()
    fields = text[text.rindex(")") + 2 :].split()
    status = (directory / "status").read_text()
    tick = os.sysconf("SC_CLK_TCK")
    return ProcessCounters(
        time=time.monotonic(),
        state=fields[0],
        cpu_s=(int(fields[11]) + int(fields[12])) / tick,
        delay_s=_delay_s(directory),
        major_faults=int(fields[9]),
        swap_bytes=1024 * _number(status, "VmSwap:"),
        tracer=_number(status, "TracerPid:"),
        building=tuple(_building(pid)),
    )


def state_of(pid: int) -> str:
    """Returns the letter of a process; "" when it has ended."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return ""
    return text[text.rindex(")") + 2]


def _delay_s(directory: Path) -> float:
    """Seconds that the main thread was ready to run and had no core; 0 where the kernel does not count them."""
    try:
        return int((directory / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _number(status: str, name: str) -> int:
    for line in status.splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0


def _building(pid: int) -> list[str]:
    """Names of the compilers that the process, or a descendant of it, runs."""
    found, pending = [], [pid]
    while pending:
        parent = pending.pop()
        try:
            tasks = list((_PROC / str(parent) / "task").iterdir())
            children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:  # it has ended meanwhile
            continue
        for child in children:
            try:
                name = (_PROC / str(child) / "comm").read_text().strip()
            except OSError:
                continue
            if name in _BUILDERS:
                found.append(name)
            pending.append(child)
    return found


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a process did between two readings of its counters.

    ``cores``: how many cores it used; ``starved``: the share of the time that it was ready to run and had no core;
    ``faults_per_s``: pages that were read from a disk. ``stopped``: the share of looks at which it was stopped, if it
    went on between them; else 0.
    """

    now: ProcessCounters
    cores: float
    starved: float
    faults_per_s: float
    stopped: float = 0.0

    @classmethod
    def between(cls, before: ProcessCounters, now: ProcessCounters, states: Sequence[str] = ()) -> Activity:
        """Computes it from two readings of one process. ``states``: letters of its state at looks between them."""
        elapsed = max(now.time - before.time, 1e-6)
        return cls(
            now=now,
            cores=(now.cpu_s - before.cpu_s) / elapsed,
            starved=min(1.0, max(0.0, (now.delay_s - before.delay_s) / elapsed)),
            faults_per_s=(now.major_faults - before.major_faults) / elapsed,
            stopped=states.count("T") / len(states) if _goes_on(states) else 0.0,
        )


def _goes_on(states: Sequence[str]) -> bool:
    """Whether a process was stopped and then was not."""
    return any(before == "T" != after for before, after in pairwise(states))
