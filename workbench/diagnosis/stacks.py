"""Python stacks of a rank that cannot run Python: asked for by a signal, or with py-spy where that is allowed."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from workbench.core.live.rank_row import STACK_SIGNAL, RankRow, process_start, stacks_path
from workbench.core.live.stack_text import Frame, Stack, parse

#: seconds in which a rank writes its stacks, and in which py-spy reads them
_ANSWER_S, _PY_SPY_S = 1.0, 5.0
_ANSWER_LOOKS = 30
_QUIET_S = 0.03
#: seconds that another one may take who asks at the same time
_OTHERS_S = 3.0


def ask(directory: Path, ranks: dict[int, RankRow]) -> dict[int, list[Stack]]:
    """Asks ranks for their stacks, all at once; a rank that does not answer (it is stopped, or has ended) has none.

    ``directory``: with the rows of ``ranks``.
    """
    waiting: dict[int, int] = {}  # rank -> descriptor of its file
    found: dict[int, list[Stack]] = {}
    try:
        last = time.monotonic() + _OTHERS_S
        for rank, row in ranks.items():
            descriptor = os.open(stacks_path(directory, rank), os.O_RDWR)
            if not _is_locked(descriptor, last):
                os.close(descriptor)
                continue
            waiting[rank] = descriptor
            os.ftruncate(descriptor, 0)
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                _signal(row)
        sizes = dict.fromkeys(waiting, 0)
        for _ in looks(_ANSWER_LOOKS, time.monotonic() + _ANSWER_S):
            if not waiting.keys() - found.keys():
                break
            time.sleep(_QUIET_S)
            for rank in waiting.keys() - found.keys():
                size = os.fstat(waiting[rank]).st_size
                if size and size == sizes[rank]:  # written to the end
                    found[rank] = parse(
                        os.pread(waiting[rank], size, 0).decode(errors="replace"), ranks[rank].main_thread
                    )
                sizes[rank] = size
    finally:
        for descriptor in waiting.values():
            os.close(descriptor)
    missing = {rank: row for rank, row in ranks.items() if not found.get(rank)}
    return {**found, **{rank: stacks for rank, row in missing.items() if (stacks := _from_py_spy(row.pid))}}


def looks(least: int, until: float) -> Iterator[int]:
    """Counts looks until ``time.monotonic()`` reaches ``until``, and up to ``least`` in any case: where this process
    gets no core for a while, those that it looks at may get none either."""
    for number in itertools.count():
        if number >= least and time.monotonic() >= until:
            return
        yield number


def _is_locked(descriptor: int, last: float) -> bool:
    """Locks a file that one may use at a time. Returns whether that succeeded before ``time.monotonic()`` ``last``."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > last:
                return False
            time.sleep(_QUIET_S)


def _signal(row: RankRow) -> None:
    """Sends the signal, by a handle of the process, to the one that wrote the row and no other."""
    handle = os.pidfd_open(row.pid)
    try:
        if process_start(row.pid) == row.process_start:
            signal.pidfd_send_signal(handle, STACK_SIGNAL)
    finally:
        os.close(handle)


def _from_py_spy(pid: int) -> list[Stack]:
    """Returns what py-spy reads of a process that is stopped; [] without py-spy, or where it is not allowed."""
    program = shutil.which("py-spy")
    if program is None:
        return []
    try:
        command = [program, "dump", "--nonblocking", "--pid", str(pid)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_PY_SPY_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_py_spy(done.stdout)


def parse_py_spy(text: str) -> list[Stack]:
    """Parses what ``py-spy dump`` prints; the main thread comes first."""
    found: list[Stack] = []
    name = ""
    frames: list[Frame] = []
    for line in [*text.splitlines(), 'Thread 0 (end): ""']:
        thread = re.match(r'Thread .*: ?"(.*)"', line)
        frame = re.match(r"\s+(\S+) \((.*):(\d+)\)", line)
        if thread:
            if frames:
                found.append(Stack(is_main=name == "MainThread", frames=tuple(frames)))
            name, frames = thread[1], []
        elif frame:
            frames.append(Frame(file=frame[2], line=int(frame[3]), function=frame[1]))
    return sorted(found, key=lambda stack: not stack.is_main)


def main_frames(stacks: Iterable[Stack]) -> tuple[Frame, ...]:
    """Returns the calls of the main thread, the innermost first; () when they are not known."""
    return next((stack.frames for stack in stacks if stack.is_main), ())
