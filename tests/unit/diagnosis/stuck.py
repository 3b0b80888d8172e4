"""A process that has the files of a rank and no tensor library: ``python -m tests.unit.diagnosis.stuck DIR RANK WHAT``.

It says "ready" when it does WHAT, in which it stays until its input is closed.
"""

from __future__ import annotations

import ctypes
import os
import pdb
import subprocess
import sys
import time
from pathlib import Path

from tests.waiting import until_asleep
from workbench.cluster.base.calls import serve_calls
from workbench.core.live import rank_row
from workbench.core.live.collective_row import MESSAGE, Description, RowWriter, row_path

LONG_S = 600.0


class Rank:
    """What a rank does of which others see the traces."""

    def __init__(self, directory: Path, rank: int) -> None:
        self.directory = directory
        rank_row.install(directory, rank)
        self.collectives = RowWriter(row_path(directory, rank))
        serve_calls(directory, rank)
        self.row = rank_row.current()

    def enter(self, group: str, number: int, kind: str = "all_reduce", members: str = "ranks 0-1") -> None:
        detail = "to rank 1" if kind == "isend" else ""
        told = Description(
            kind=kind, group=group, members=members, byte_count=10_000_000, detail=detail, place="line 3 of the cell"
        )
        key = sum(group.encode()) << 8 | (MESSAGE if kind == "isend" else 0)
        self.collectives.enter(key, number, len(kind), told.encode(), time.monotonic() - 12)

    def waits(self, *collectives: str) -> None:
        """Enters ``group/number/kind`` one after the other, and stays in the last."""
        for each in collectives:
            self.collectives.leave()
            group, number, kind, *members = each.split("/")
            self.enter(group, int(number), kind, *members)
        ready()

    def users_code(self) -> None:
        self.row.enter("forward_backward")
        ready()

    def loads(self) -> None:
        self.row.enter("data")
        ready()

    def debugs(self) -> None:
        reader, _ = os.pipe()
        ready_when_it_sleeps()
        pdb.Pdb(stdin=os.fdopen(reader), stdout=open(os.devnull, "w", encoding="utf-8")).set_trace()  # noqa: SIM115
        self.row.enter("after")

    def builds(self) -> None:
        compiler = self.directory / "ninja"
        compiler.symlink_to("/bin/sleep")
        with subprocess.Popen([compiler, str(LONG_S)]) as build:
            ready_now()
            sys.stdin.read()
            build.kill()

    def keeps_the_lock(self) -> None:
        reader, _ = os.pipe()
        ready_when_it_sleeps()
        ctypes.PyDLL(None).read(reader, ctypes.create_string_buffer(1), 1)

    def finishes(self) -> None:
        self.row.enter(rank_row.IDLE)
        ready()


def ready_now() -> None:
    print("ready", flush=True)


def ready_when_it_sleeps() -> None:
    """Says "ready" when the main thread waits. Another process says it."""
    pid = os.getpid()
    if os.fork():
        return
    until_asleep(pid)
    ready_now()
    os._exit(0)


def ready() -> None:
    ready_when_it_sleeps()
    sys.stdin.read()


if __name__ == "__main__":
    rank = Rank(Path(sys.argv[1]), int(sys.argv[2]))
    rank.row.begin_step(7)
    rank.row.enter(rank_row.CELL)
    getattr(rank, sys.argv[3])(*sys.argv[4:])
