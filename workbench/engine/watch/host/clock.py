"""Reading the time between two places of a training step, on the device that does the work.

On a CPU a reading is ``perf_counter``. On a GPU the host runs ahead of the device, so a reading is a CUDA event in the
current stream; nothing waits for it: it is looked at a step later, when it has long happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

#: what ``Clock.now`` returns; only the clock that made it can read it
Reading = Any


class Clock(Protocol):
    """``now`` is called at every boundary and must be cheap; ``ms`` may be called only when both are ``ready``."""

    def now(self) -> Reading:
        """Read the clock; waits for nothing."""

    def ready(self, reading: Reading) -> bool:
        """Whether a reading has been reached by the device."""

    def ms(self, earlier: Reading, later: Reading) -> float:
        """Milliseconds between two readings that are ready."""

    def recycle(self, readings: list[Reading]) -> None:
        """Give readings back that nobody needs any more."""


class HostClock:
    """The host's monotonic clock."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = time.perf_counter

    def ready(self, reading: Reading) -> bool:
        """Always: the host has no queue."""
        return True

    def ms(self, earlier: Reading, later: Reading) -> float:
        """Milliseconds between two readings."""
        return (later - earlier) * 1e3

    def recycle(self, readings: list[Reading]) -> None:
        """Numbers need no giving back."""
        return


class EventClock:
    """Events of a device's current stream. ``make`` makes one that measures time (default: torch's CUDA event).

    Events that were read are used again: making one costs more than recording it.
    """

    def __init__(self, make: Callable[[], Any] | None = None) -> None:
        self._make = make or _cuda_event
        self._free: list[Any] = []

    def now(self) -> Reading:
        """Record an event on the current stream."""
        event = self._free.pop() if self._free else self._make()
        event.record()
        return event

    def ready(self, reading: Reading) -> bool:
        """Whether the device has passed the event."""
        return bool(reading.query())

    def ms(self, earlier: Reading, later: Reading) -> float:
        """Milliseconds between two events that are ready."""
        return float(earlier.elapsed_time(later))

    def recycle(self, readings: list[Reading]) -> None:
        """Keep events for later readings."""
        self._free.extend(readings)


def _cuda_event() -> Any:
    import torch

    return torch.cuda.Event(enable_timing=True)


def clock_for(device_type: str) -> Clock:
    """The clock of a device: "cpu" or "cuda"."""
    return EventClock() if device_type == "cuda" else HostClock()
