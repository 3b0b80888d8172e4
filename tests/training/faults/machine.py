"""Limits of the machine, brought about for one test: memory that a process may not exceed, a disk that fills up."""

from __future__ import annotations

import errno
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
#: what a process may take beyond what it has
LIMIT_BYTES = 192 << 20
#: what a run asks for before it begins, and some more
DISK_BYTES = 40 << 20


@contextmanager
def limited_memory(pid: int) -> Iterator[bool]:
    """Limits what process ``pid`` takes from now on, by a cgroup of its own; yields whether the kernel kills it then.

    Without the right to make a cgroup, its address space is limited: then it gets a ``MemoryError``.
    """
    group, limit = (
        (_CGROUPS / "memory", "memory.limit_in_bytes") if (_CGROUPS / "memory").is_dir() else (_CGROUPS, "memory.max")
    )  # the first with cgroups of version 1
    mine = group / f"workbench-test-{pid}"
    try:
        mine.mkdir()
        (mine / limit).write_text(str(LIMIT_BYTES))
        (mine / "cgroup.procs").write_text(str(pid))
        is_killed = True
    except OSError:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + LIMIT_BYTES
        before = resource.prlimit(pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        is_killed = False
    try:
        yield is_killed
    finally:
        if mine.exists():
            mine.rmdir()
        if not is_killed:
            resource.prlimit(pid, resource.RLIMIT_AS, before)


@contextmanager
def throttled(pid: int) -> Iterator[bool]:
    """Gives process ``pid`` 2 % of a core, by a cgroup of its own; yields False without the right to make one."""
    group, settings = _CGROUPS, {"cpu.max": "2000 100000"}
    if (_CGROUPS / "cpu").is_dir():  # with cgroups of version 1
        group, settings = _CGROUPS / "cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "2000"}
    mine = group / f"workbench-test-{pid}"
    try:
        mine.mkdir()
        for name, value in settings.items():
            (mine / name).write_text(value)
        (mine / "cgroup.procs").write_text(str(pid))
        is_done = True
    except OSError:
        is_done = False
    try:
        yield is_done
    finally:
        if is_done:
            (group / "cgroup.procs").write_text(str(pid))
        if mine.exists():
            mine.rmdir()


class SmallDisk:
    """A disk of 40 MB for run directories. ``is_mounted``: a file system of its own; otherwise the files of the
    processes are limited, which needs no rights."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
        self.is_mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
        self._limited: list[int] = []

    def fill(self, pids: list[int]) -> None:
        """Fills it up, for the processes ``pids`` at least."""
        if not self.is_mounted:
            self._limited = pids
            self._limit_files(1000)
            return
        with (self.place / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def _limit_files(self, most: int) -> None:
        for pid in self._limited:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    def remove(self) -> None:
        """Gives it back."""
        self._limit_files(resource.RLIM_INFINITY)
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.place)], check=True)
