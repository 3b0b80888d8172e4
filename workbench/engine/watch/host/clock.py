"""Clocks that measure the time between two points of a training step, on the device that does the work.

On a CPU a reading is ``time.perf_counter``. A GPU runs behind the host, so there a reading is a CUDA event recorded on
the current stream. Nothing waits for the event: it is evaluated one step later, when the device has passed it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

#: what ``Clock.now`` returns; only the clock that made it can evaluate it
Reading = Any


class Clock(Protocol):
    """``now`` is called at every phase boundary and must be cheap. ``elapsed_ms`` needs readings that are ``ready``."""

    def now(self) -> Reading:
        """Read the clock without waiting."""

    def ready(self, reading: Reading) -> bool:
        """Whether the device has reached the reading."""

    def elapsed_ms(self, earlier: Reading, later: Reading) -> float:
        """Milliseconds between two readings that are ready."""

    def recycle(self, readings: list[Reading]) -> None:
        """Return readings that are no longer needed, so that the clock can reuse them."""


class HostClock:
    """The monotonic clock of the host. Its readings are seconds as floats."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = time.perf_counter

    def ready(self, reading: Reading) -> bool:
        """Always true: a host reading is complete when it is taken."""
        return True

    def elapsed_ms(self, earlier: Reading, later: Reading) -> float:
        """Milliseconds between two readings."""
        return (later - earlier) * 1e3

    def recycle(self, readings: list[Reading]) -> None:
        """Does nothing: a float needs no reuse."""
        return


class EventClock:
    """Reads a device by events on its current stream. ``make`` creates a timing event (default: a CUDA event).

    Events are reused, as creating one costs more than recording it.
    """

    def __init__(self, make: Callable[[], Any] | None = None) -> None:
        self._make = make or _make_cuda_event
        self._free: list[Any] = []

    def now(self) -> Reading:
        """Record an event on the current stream."""
        event = self._free.pop() if self._free else self._make()
        event.record()
        return event

    def ready(self, reading: Reading) -> bool:
        """Whether the device has passed the event."""
        return bool(reading.query())

    def elapsed_ms(self, earlier: Reading, later: Reading) -> float:
        """Milliseconds between two events that are ready."""
        return float(earlier.elapsed_time(later))

    def recycle(self, readings: list[Reading]) -> None:
        """Keep the events for later readings."""
        self._free.extend(readings)


def _make_cuda_event() -> Any:
    import torch

    return torch.cuda.Event(enable_timing=True)


def make_clock(device_type: str) -> Clock:
    """Create the clock for a device type: "cuda" gives an ``EventClock``, any other a ``HostClock``."""
    return EventClock() if device_type == "cuda" else HostClock()
