"""What is recorded of a rank whose loop is not ours, steps apart: events, and samples of its resources."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from workbench.core import background
from workbench.core.records import EventKind
from workbench.engine.watch.host.sampler import DeviceSampler, Progress
from workbench.events.outcome import failure
from workbench.rundir.log import RankLogWriter


class RankRecording:
    """The log of ``rank`` in the run directory ``path``, and its resources, sampled from now until ``end``."""

    def __init__(self, path: Path, rank: int, *, sample_hz: float, device: str = "cpu") -> None:
        self.path = path
        self.rank = rank
        self.log = RankLogWriter(path, rank)
        self.progress = Progress()
        self._process = os.getpid()
        self._sample_hz = sample_hz
        self._device = device
        self.log.event(EventKind.STATE, "starting", {"pid": os.getpid(), "device": device})
        self._sampler = self._sampling()

    def _sampling(self) -> DeviceSampler:
        found = DeviceSampler(self.log, rank=self.rank, hz=self._sample_hz, device=self._device, progress=self.progress)
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
