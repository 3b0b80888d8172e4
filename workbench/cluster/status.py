"""The status of one rank: a row of ``%dist_status``."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import psutil

from workbench.cluster.hosts.placement import CPU, Binding


@dataclass(frozen=True, kw_only=True)
class RankStatus:
    """Where a rank runs and what it does.

    ``device``: ``"cpu"`` or ``"cuda:<id>"``. ``cores``: logical CPUs that it is pinned to (empty: not pinned).
    ``memory_bytes``: resident memory of its process. ``state``: ``idle``, ``running cell``, ``training``, ``in the
    debugger`` or ``dead``.
    ``step``: the last step that it finished of the current run, or None. ``warning``: text for the user, or "".
    """

    rank: int
    pid: int
    host: str
    device: str
    cores: tuple[int, ...]
    memory_bytes: int
    state: str
    step: int | None = None
    warning: str = ""


def measure_ranks(
    bindings: Iterable[Binding],
    *,
    pids: Mapping[int, int],
    dead: Mapping[int, str],
    state_of: Callable[[int], tuple[str, int | None]],
) -> list[RankStatus]:
    """Returns the status of each rank of this host. ``dead``: why ranks ended; ``state_of(rank)``: state and step of
    one that did not."""
    host, rows = socket.gethostname(), []
    for binding in bindings:
        rank = binding.rank
        state, step = state_of(rank)
        rows.append(_measure(binding, pid=pids.get(rank, 0), host=host, state=state, step=step, dead=dead.get(rank)))
    return rows


def _measure(binding: Binding, *, pid: int, host: str, state: str, step: int | None, dead: str | None) -> RankStatus:
    """Returns the status of a rank, measured from outside its process. ``dead``: why the rank ended, or None."""
    memory, warning = 0, dead.splitlines()[0] if dead else ""
    if dead is None:
        try:
            process = psutil.Process(pid)
            memory = process.memory_info().rss
            if process.status() == psutil.STATUS_STOPPED:
                warning = "its process is stopped by a signal: continue it with SIGCONT"
        except psutil.Error:
            warning = "its process cannot be inspected: it has ended or belongs to another user"
    return RankStatus(
        rank=binding.rank,
        pid=pid,
        host=host,
        device=CPU if binding.device == CPU else f"cuda:{binding.device}",
        cores=binding.cores,
        memory_bytes=memory,
        state="dead" if dead is not None else state,
        step=step,
        warning=warning,
    )
