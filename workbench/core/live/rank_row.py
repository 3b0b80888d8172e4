"""What a rank does at this moment, in a small file that other processes read without its help.

A rank has one file of fixed size, mapped into memory: its process, its step and its phase, with the time of their
begin. On a signal it writes the Python stacks of all its threads into a second file, while native code holds the
interpreter's lock. Little-endian.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.core.live.collective_row import DIRECTORY
from workbench.core.live.stack_text import cell_lines

#: a rank writes its stacks on this signal; programs use SIGUSR1 and SIGUSR2 for themselves
STACK_SIGNAL = signal.SIGRTMIN + 9
#: process id, start of the process in clock ticks after boot, identity of the main thread
_PROCESS = struct.Struct("<qQQ")
#: step, its begin, longest of the recent steps (s)
_STEP = struct.Struct("<qdd")
#: begin of the phase, longest of its recent occurrences (s), its name
_PHASE = struct.Struct("<dd32s")
_STEP_AT = _PROCESS.size
_PHASE_AT = _STEP_AT + _STEP.size
FILE_BYTES = _PHASE_AT + _PHASE.size
#: what is left of the longest duration when a shorter one follows
_DECAY = 0.95
#: the phases in which a rank waits for people
IDLE, PAUSED = "idle", "paused"
#: the phases of a rank that runs a cell, that stands at a prompt of the debugger, and whose training has failed
CELL, DEBUGGER, FAILING = "cell", "debugger", "failing"


def row_path(directory: Path, rank: int) -> Path:
    """Returns the file of a rank's row."""
    return directory / f"rank-{rank:05d}.row"


def stacks_path(directory: Path, rank: int) -> Path:
    """Returns the file that a rank writes its stacks into."""
    return directory / f"rank-{rank:05d}.stacks"


@dataclass(frozen=True, kw_only=True)
class RankRow:
    """What a rank does. ``since`` and ``step_since``: ``time.monotonic()`` of the begin of the phase and of the step.

    ``phase``: ``idle``, ``cell``, ``paused``, ``debugger``, or a phase of a training. ``usual_s``, ``usual_step_s``:
    the longest that this phase, and that a step, has lately taken; 0 before the first has ended. ``process_start``:
    clock ticks after boot, which tell a process from a later one with the same number. ``main_thread``: as
    ``threading.get_ident``.
    """

    pid: int
    process_start: int
    main_thread: int
    step: int
    step_since: float
    usual_step_s: float
    phase: str
    since: float
    usual_s: float


class RowWriter:
    """Writes the row of this process, a rank. Each call costs about a microsecond. For the main thread."""

    def __init__(self, directory: Path, rank: int) -> None:
        with row_path(directory, rank).open("w+b") as file:
            file.truncate(FILE_BYTES)
            self._map = mmap.mmap(file.fileno(), FILE_BYTES)
        now = time.monotonic()
        self._phase, self._since = IDLE, now
        self._usual: dict[str, float] = {}
        self._step, self._step_since, self._usual_step = 0, now, 0.0
        start = process_start(os.getpid())
        _STEP.pack_into(self._map, _STEP_AT, 0, now, 0.0)
        _PHASE.pack_into(self._map, _PHASE_AT, now, 0.0, IDLE.encode())
        _PROCESS.pack_into(self._map, 0, os.getpid(), start, threading.main_thread().ident or 0)

    def enter(self, phase: str) -> None:
        """Records that a phase begins and the one before it ends."""
        now, usual = time.monotonic(), self._usual
        before = usual.get(self._phase, 0.0) * _DECAY
        usual[self._phase] = max(now - self._since, before)
        self._phase, self._since = phase, now
        _PHASE.pack_into(self._map, _PHASE_AT, now, usual.get(phase, 0.0), phase.encode()[:32])

    def begin_step(self, step: int) -> None:
        """Records that a step begins; if it follows the last one, that one has ended."""
        now = time.monotonic()
        if step == self._step + 1 and self._step:
            self._usual_step = max(now - self._step_since, self._usual_step * _DECAY)
        self._step, self._step_since = step, now
        _STEP.pack_into(self._map, _STEP_AT, step, now, self._usual_step)

    @contextlib.contextmanager
    def aside(self, phase: str) -> Iterator[None]:
        """While entered, the rank is in another phase; the time counts neither to its own phase nor to its step."""
        before, since, began = self._phase, self._since, time.monotonic()
        self._phase = phase
        _PHASE.pack_into(self._map, _PHASE_AT, began, 0.0, phase.encode()[:32])
        try:
            yield
        finally:
            away = time.monotonic() - began
            self._phase, self._since = before, since + away
            self._step_since += away
            _STEP.pack_into(self._map, _STEP_AT, self._step, self._step_since, self._usual_step)
            _PHASE.pack_into(self._map, _PHASE_AT, self._since, self._usual.get(before, 0.0), before.encode()[:32])

    def begin_run(self) -> None:
        """Forgets the durations of an earlier run."""
        self._usual.clear()
        self._step, self._usual_step = 0, 0.0
        self.begin_step(0)


def live_directory() -> str:
    """Returns the directory of this rank's row; "" in a process that is no rank."""
    return os.environ.get(DIRECTORY, "") if _own else ""


#: what answers when a rank is asked what it knows of its collectives: a text of JSON lines
tellers: list[Callable[[], str]] = []


def answered_stacks(path: Path) -> Path:
    """Returns the file beside an answer that has the stacks of all threads."""
    return Path(f"{path}.stacks")


def answer(path: str) -> None:
    """Writes the lines of cells that the main thread is in, and what the ``tellers`` say, into the file ``path``.

    That it comes shows that the rank can run Python. Called in a thread of the rank.
    """
    beside = Path(f"{path}.new")
    with contextlib.suppress(FileNotFoundError):  # the one that asked has given up, and removed the directory
        with answered_stacks(Path(path)).open("wb", buffering=0) as file:
            faulthandler.dump_traceback(file, all_threads=True)  # no other thread runs Python meanwhile
        beside.write_text("\n".join([cell_lines(), *(tell() for tell in tellers)]), encoding="utf-8")
        beside.replace(path)


#: the row of this process, once it is a rank
_own: list[RowWriter] = []


def current() -> RowWriter | None:
    """Returns the writer of this rank, or None in a process that is none."""
    return _own[0] if _own else None


def note_failing() -> None:
    """Records that the training of this rank has failed, which it now leaves; does nothing in another process."""
    if _own:
        _own[0].enter(FAILING)


def install(directory: Path, rank: int) -> None:
    """Makes this process, a rank, write its row, and its stacks when it is asked."""
    stacks = stacks_path(directory, rank).open("ab", buffering=0)  # open for as long as the process lives
    faulthandler.register(STACK_SIGNAL, file=stacks, all_threads=True)
    _own[:] = [RowWriter(directory, rank)]  # who finds a row may send the signal: it comes last
    _kept_open[:] = [stacks]


_kept_open: list[object] = []


def process_start(pid: int) -> int:
    """Returns when a process began, in clock ticks after boot. Raises ``OSError`` when there is none."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[19])


def read_row(directory: Path, rank: int) -> RankRow:
    """Returns the row of a rank. Raises ``OSError`` when it has none (yet)."""
    path = row_path(directory, rank)
    data = b""
    for _ in range(100):  # until it was not written between two reads
        before, data = data, path.read_bytes()
        if data == before:
            break
    if len(data) != FILE_BYTES or not data[: _PROCESS.size].strip(b"\0"):
        raise FileNotFoundError(f"{path} is not written yet")
    pid, start, main_thread = _PROCESS.unpack_from(data, 0)
    step, step_since, usual_step_s = _STEP.unpack_from(data, _STEP_AT)
    since, usual_s, phase = _PHASE.unpack_from(data, _PHASE_AT)
    return RankRow(
        pid=pid,
        process_start=start,
        main_thread=main_thread,
        step=step,
        step_since=step_since,
        usual_step_s=usual_step_s,
        phase=phase.rstrip(b"\0").decode(errors="replace"),
        since=since,
        usual_s=usual_s,
    )


def is_in_debugger(rank: int) -> bool:
    """Returns whether another rank of this rank's session stands at a prompt of the debugger."""
    try:
        return bool(_own) and read_row(Path(live_directory()), rank).phase == DEBUGGER
    except OSError:  # it is on another host
        return False


def is_leaving(directory: Path, rank: int, *, began: float) -> bool:
    """Returns whether a rank writes down how its training failed, or has left it and its reply is on the way.

    ``began``: ``time.monotonic()`` when the training was sent to it.
    """
    try:
        row = read_row(directory, rank)
    except OSError:  # it has ended
        return False
    return row.phase == FAILING or (row.phase == IDLE and row.since >= began)


def ranks_in(directory: Path) -> list[int]:
    """Returns the ranks that have a row in ``directory``."""
    return sorted(int(path.stem.partition("-")[2]) for path in directory.glob("rank-?????.row"))
