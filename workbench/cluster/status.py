"""One row of ``%dist_status``."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from workbench.cluster.hosts.placement import CPU, Binding


@dataclass(frozen=True, kw_only=True)
class RankStatus:
    """Where a rank runs and what it does. ``memory_bytes``: resident memory of its process. ``state``: idle, running
    cell, training or dead. ``step``: of the run that trains. ``cores`` empty: not pinned. ``warning``: readable."""

    rank: int
    pid: int
    host: str
    device: str
    cores: tuple[int, ...]
    memory_bytes: int
    state: str
    step: int | None = None
    warning: str = ""


def measure(binding: Binding, *, pid: int, host: str, state: str, step: int | None, dead: str | None) -> RankStatus:
    """Measures the process of a rank from outside, without asking the rank."""
    memory, warning = 0, dead.splitlines()[0] if dead else ""
    if dead is None:
        try:
            process = psutil.Process(pid)
            memory = process.memory_info().rss
            if process.status() == psutil.STATUS_STOPPED:
                warning = "stopped by a signal"
        except psutil.Error:
            warning = "its process cannot be inspected"
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
