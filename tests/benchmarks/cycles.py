"""What many starts and ends of ranks leave behind: processes, threads, file descriptors, files, shared memory, memory.

    python tests/benchmarks/cycles.py [--cycles 200]

Each cycle starts two light ranks (no torch) with a rank server of their own, runs a cell on them, and ends all. The
table compares the process and the machine after 10 % of the cycles with the end: what grows, leaks.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from tempfile import gettempdir

import psutil

from tests.benchmarks.machine import describe_machine
from workbench.cluster.base.private_directory import PREFIX
from workbench.cluster.session import Session
from workbench.core.numbers import format_table

LIGHT = "tests.cluster.preloads:light"


@dataclass(frozen=True, kw_only=True)
class Held:
    """What this process holds, and what lies where its ranks put files."""

    children: int
    threads: int
    descriptors: int
    directories: int
    shared_memory: int
    resident_mib: float

    @classmethod
    def now(cls, temporary: Path) -> Held:
        """Of this moment. ``temporary``: where private directories are made."""
        me = psutil.Process()
        return cls(
            children=len(me.children(recursive=True)),
            threads=me.num_threads(),
            descriptors=me.num_fds(),
            directories=len(list(temporary.glob(f"{PREFIX}*"))),
            shared_memory=len(list(Path("/dev/shm").iterdir())),
            resident_mib=round(me.memory_info().rss / 2**20, 1),
        )


def cycle() -> None:
    """Start two ranks, use them, end them and their server."""
    session = Session.up(2, preload=LIGHT)
    try:
        session.execute("x = rank").raise_on_error()
    finally:
        session.down()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=200)
    cycles = max(2, parser.parse_args().cycles)
    print(describe_machine())
    early: Held | None = None
    began = time.monotonic()
    for number in range(cycles):
        cycle()
        if number + 1 == max(1, cycles // 10):
            early = Held.now(Path(gettempdir()))
    late = Held.now(Path(gettempdir()))
    assert early is not None
    names = [each.name.replace("_", " ") for each in fields(Held)]
    rows = [
        (name, str(before), str(after))
        for name, before, after in zip(names, astuple(early), astuple(late), strict=True)
    ]
    print(format_table(rows, ("", f"after {max(1, cycles // 10)} cycles", f"after {cycles}")))
    print(f"{(time.monotonic() - began) / cycles:.2f} s a cycle")


if __name__ == "__main__":
    main()
