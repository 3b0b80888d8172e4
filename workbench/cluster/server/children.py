"""The children of a rank server, as it keeps them."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

from workbench.cluster.base import protocol as p
from workbench.cluster.server.warm import WarmSpec
from workbench.core.live.stack_text import without_other_threads

_LOG_TAIL_CHARACTERS = 4000
#: bytes in which the report of a fatal signal fits, with the stacks of all threads and the names of all modules
_REPORT_BYTES = 1 << 16


@dataclass
class WarmProcess:
    """A warm process, or one that is still warming up.

    ``log``: name of its log file, without suffix. ``channel``: connection to it.
    ``assigned``: ranks that it must start and has not started yet. ``started``: for a GPU, the rank that it became.
    """

    pid: int
    spec: WarmSpec
    log: str
    channel: socket.socket
    buffer: p.LineBuffer = field(default_factory=p.LineBuffer)
    assigned: list[p.RankSpec] = field(default_factory=list)
    started: list[int] = field(default_factory=list)


@dataclass
class RunningRank:
    """A running rank. ``oom_kills``: out-of-memory kills of the cgroup, counted when the rank started."""

    pid: int
    rank: int
    oom_kills: int


def read_log_tail(directory: Path, name: str) -> str:
    """Returns the last 4,000 characters of the log file ``name`` (without suffix); "" when there is none.

    Of the report of a fatal signal only the thread is kept that got it.
    """
    try:
        data = (directory / f"{name}.log").read_bytes()
    except OSError:
        return ""
    return without_other_threads(data[-_REPORT_BYTES:].decode(errors="replace"))[-_LOG_TAIL_CHARACTERS:]
