"""Copies small tensors from the device to the host, and measures costs on both, without blocking either."""

from __future__ import annotations

import time

import numpy as np
import torch


class HostCopy:
    """Copies of a few small tensors on the host.

    CPU tensors are available immediately. GPU tensors are copied asynchronously to pinned memory, on the stream that
    computes them; ``ready`` says when the copy is complete.
    """

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        if all(tensor.device.type == "cpu" for tensor in tensors):
            self._host = [tensor.detach() for tensor in tensors]
            return
        self._host = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for host, tensor in zip(self._host, tensors, strict=True):
            host.copy_(tensor.detach(), non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def ready(self) -> bool:
        """Whether ``arrays`` returns without waiting."""
        return self._event is None or self._event.query()

    def arrays(self) -> list[np.ndarray]:
        """Return the values as NumPy arrays; waits for the device when they are not ready."""
        if self._event is not None:
            self._event.synchronize()
        return [tensor.numpy() for tensor in self._host]


class Stopwatch:
    """Adds up the cost of code sections, measured by ``with stopwatch:`` (sections may nest).

    On a CPU a section costs the processor time of its thread: the time in which another thread or process has the core
    is not its cost. On a GPU it costs its time on the host or its time on the device, whichever is longer. ``clock``
    gives the seconds by which the host's part is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.clock = time.perf_counter if self._on_gpu else time.thread_time
        self._host_ms = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event, float]] = []
        self._began = 0.0
        self._depth = 0

    def __enter__(self) -> Stopwatch:
        self._depth += 1
        if self._depth == 1:
            self._began = self.clock()
            if self._on_gpu:
                self._start = torch.cuda.Event(enable_timing=True)
                self._start.record()
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        spent = (self.clock() - self._began) * 1e3
        if self._on_gpu:
            end = torch.cuda.Event(enable_timing=True)
            end.record()
            self._events.append((self._start, end, spent))
        else:
            self._host_ms += spent

    def add(self, ms: float) -> None:
        """Add ``ms`` that were measured elsewhere."""
        self._host_ms += ms

    def take(self) -> float:
        """Milliseconds measured since the last call. Sections that a GPU has not finished count in a later call."""
        total, self._host_ms = self._host_ms, 0.0
        while self._events and self._events[0][1].query():
            start, end, spent = self._events.pop(0)
            total += max(spent, start.elapsed_time(end))
        return total
