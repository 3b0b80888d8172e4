"""What is recorded of a rank whose loop is not ours, steps apart: events, and samples of its resources."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from workbench.core import background
from workbench.core.config import MonitorSpec
from workbench.core.records import EventKind
from workbench.engine.watch.host.governor import WRITING_SHARE
from workbench.engine.watch.host.sampler import DeviceSampler, Progress
from workbench.events.outcome import failure
from workbench.rundir.log import RankLogWriter

#: part of the monitor's budget that samples of resources may take
SAMPLING = 0.15


class RankRecording:
    """The log of ``rank`` in the run directory ``path``, and its resources, sampled from now until ``end``; both take
    at most a part of the budget of ``monitor`` from a processor, and become rarer instead."""

    def __init__(self, path: Path, rank: int, *, monitor: MonitorSpec, device: str = "cpu") -> None:
        self.path = path
        self.rank = rank
        self.log = RankLogWriter(path, rank, share=WRITING_SHARE * monitor.budget)
        self.progress = Progress()
        self._process = os.getpid()
        self._monitor = monitor
        self._device = device
        self.log.event(EventKind.STATE, "starting", {"pid": os.getpid(), "device": device})
        self._sampler = self._sampling()

    def _sampling(self) -> DeviceSampler:
        found = DeviceSampler(
            self.log,
            rank=self.rank,
            hz=self._monitor.sample_hz,
            device=self._device,
            progress=self.progress,
            share=SAMPLING * self._monitor.budget,
        )
        found.start()
        return found

    def watch_device(self, device: str) -> None:
        """Sample this device from now on: torch's name of it."""
        if device != self._device:
            self._device = device
            self._sampler.stop()
            self._sampler = self._sampling()

    def end(self, state: str, error: BaseException | None = None) -> None:
        """Tell the last state, and of what it failed, and close the log; may be called twice, and does nothing in a
        child of a fork."""
        if self.log.closed or os.getpid() != self._process:  # a child of a fork has none of the threads
            return
        self.log.event(EventKind.STATE, state, None if error is None else _failure(error), step=self.progress.step)
        self._sampler.stop()
        self.log.close()


def _failure(error: BaseException) -> dict[str, Any]:
    torch: Any = sys.modules.get("torch")
    lost = (torch.distributed.DistError,) if torch is not None else ()
    is_peers = isinstance(error, (KeyboardInterrupt, *lost))
    return failure(type(error).__name__, str(error), background.traceback_of(error), peer=is_peers)
