"""A clock of ranks that a busy machine does not disturb."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist


class StillClock:
    """Stands for ``time.perf_counter`` of a rank: each reading is ``TICK_S`` later than the one before, and sleeping
    moves it on. What else the machine does takes no time of it."""

    TICK_S = 1e-4

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        self.sleep(self.TICK_S)
        return self._now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds

    def advance_to(self, now: float) -> None:
        """Move on to ``now``, unless it is past."""
        with self._lock:
            self._now = max(self._now, now)


class Arrival:
    """The ``Work`` of a message that is received: where it is waited for, it is not there before it was sent."""

    def __init__(self, work: Any, clock: StillClock, sent: Path, number: int) -> None:
        self._work, self._clock, self._sent, self._number = work, clock, sent, number

    def wait(self, *arguments: Any) -> Any:
        found = self._work.wait(*arguments)
        (sent,) = struct.unpack_from("d", self._sent.read_bytes(), 8 * self._number)
        self._clock.advance_to(sent)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


@contextlib.contextmanager
def still_clock(rank: int, directory: Path) -> Iterator[StillClock]:
    """The ``StillClock`` of a rank in place of ``time.perf_counter``. Messages of a pipeline carry the sender's."""
    clock, received = StillClock(), Counter[int]()
    send, receive = dist.ProcessGroup.send, dist.ProcessGroup.recv

    def stamped_send(group: Any, tensors: Any, to: int, *tag: int) -> Any:
        with (directory / f"sent-{rank}-{to}").open("ab") as file:
            file.write(struct.pack("d", clock()))
        return send(group, tensors, to, *tag)

    def stamped_receive(group: Any, tensors: Any, source: int, *tag: int) -> Any:
        received[source] += 1
        work = receive(group, tensors, source, *tag)
        return Arrival(work, clock, directory / f"sent-{source}-{rank}", received[source] - 1)

    with (
        mock.patch.object(time, "perf_counter", clock),
        mock.patch.object(dist.ProcessGroup, "send", stamped_send),
        mock.patch.object(dist.ProcessGroup, "recv", stamped_receive),
    ):
        yield clock
