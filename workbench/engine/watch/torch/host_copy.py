"""Numbers on their way from the device to the host, without anybody waiting for them."""

from __future__ import annotations

import time

import numpy as np

import torch


class HostCopy:
    """Copies of a few small tensors. On a CPU they are there at once; from a GPU they are copied to pinned memory
    behind the work that makes them, and ``ready`` says when."""

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
        """Whether ``arrays`` would not wait."""
        return self._event is None or self._event.query()

    def arrays(self) -> list[np.ndarray]:
        """The numbers; waits for the device if it has to."""
        if self._event is not None:
            self._event.synchronize()
        return [tensor.numpy() for tensor in self._host]


class Stopwatch:
    """Adds up what something costs: time of this thread, and on a GPU the time that the device worked for it, whichever
    is longer. ``with watch:`` around the parts; ``take`` gives the milliseconds of what has been measured by now."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._host_ms = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event, float]] = []
        self._began = 0.0
        self._depth = 0

    def __enter__(self) -> Stopwatch:
        self._depth += 1
        if self._depth == 1:
            self._began = time.perf_counter()
            if self._on_gpu:
                self._start = torch.cuda.Event(enable_timing=True)
                self._start.record()
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        spent = (time.perf_counter() - self._began) * 1e3
        if self._on_gpu:
            end = torch.cuda.Event(enable_timing=True)
            end.record()
            self._events.append((self._start, end, spent))
        else:
            self._host_ms += spent

    def add(self, ms: float) -> None:
        """Count something that was not measured here."""
        self._host_ms += ms

    def take(self) -> float:
        """Milliseconds since the last call; of a GPU those parts that are over, the others count in a later call."""
        total, self._host_ms = self._host_ms, 0.0
        while self._events and self._events[0][1].query():
            start, end, spent = self._events.pop(0)
            total += max(spent, start.elapsed_time(end))
        return total
