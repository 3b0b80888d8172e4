"""Colossal-AI's view of a machine without GPUs: its plugins run unchanged on CPU ranks over gloo.

Colossal-AI ships a ``CpuAccelerator`` whose stream, event, memory and random-state calls raise, although its plugins
make them on every device. Here they do what they mean on a CPU: nothing, because every operation is synchronous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from colossalai.accelerator.cpu_accelerator import CpuAccelerator


class _Stream:
    """A stream on which everything is done already."""

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _Event(_Stream):
    """An event that has happened."""

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def elapsed_time(self, end: Any) -> float:
        return 0.0


class GlooAccelerator(CpuAccelerator):
    """CPU device, gloo backend, no-op streams.

    ``name`` is "cuda": ``zero/low_level/low_level_optim.py`` and ``zero/gemini/chunk/chunk.py`` assert a name of an
    accelerator although they only use this object's methods.
    """

    support_set_device = False

    def __init__(self) -> None:
        super().__init__()
        self._name = "cuda"
        self._stream = _Stream()

    def current_device(self) -> int:
        """The number of the rank's only device."""
        return 0

    def set_device(self, device: Any = None) -> None:
        """Does nothing: a CPU rank has one device."""

    def get_device_name(self, device: Any = None) -> str:
        """What the device is called: cpu."""
        return "cpu"

    def device_count(self) -> int:
        """The number of devices of a CPU rank."""
        return 1

    def synchronize(self, device: Any = None) -> None:
        """Work on a CPU is done when its call returns."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        """State of the CPU generator; upstream passes ``device`` on to a function that takes none."""
        return torch.get_rng_state()

    def get_rng_state_all(self) -> list[torch.Tensor]:
        """The state of the one generator."""
        return [torch.get_rng_state()]

    def set_rng_state_all(self, new_states: list[torch.Tensor]) -> None:
        """Put back what ``get_rng_state_all`` gave."""
        torch.set_rng_state(new_states[0])

    def manual_seed(self, seed: int) -> None:
        """Seed the generator of this rank; ``torch.manual_seed`` formats two stacks each time, for GPUs to come."""
        torch.default_generator.manual_seed(seed)

    manual_seed_all = manual_seed

    def initial_seed(self) -> int:
        """The seed that this rank began with."""
        return torch.initial_seed()

    def empty_cache(self) -> None:
        """Does nothing: tensors on a CPU are not cached."""

    def memory_allocated(self, device: Any = None) -> int:
        """The process' resident bytes: a CPU has no allocator of its own to ask."""
        return psutil.Process().memory_info().rss

    max_memory_allocated = memory_allocated

    def reset_max_memory_allocated(self, device: Any = None) -> None:
        """Does nothing: resident memory has no peak that could be reset."""

    def reset_max_memory_cached(self, device: Any = None) -> None:
        """Does nothing: resident memory has no peak that could be reset."""

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        """Does nothing: resident memory has no peak that could be reset."""

    def Stream(self, device: Any = None, priority: int = 0, **kwargs: Any) -> _Stream:
        """A stream in name: work is done in the order of its calls."""
        return self._stream

    def Event(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> _Event:
        """An event of a stream; it has always happened already."""
        return _Event()

    def current_stream(self, device: Any = None) -> _Stream:
        """The rank's only stream."""
        return self._stream

    def default_stream(self, device: Any = None) -> _Stream:
        """The rank's only stream."""
        return self._stream

    def set_stream(self, stream_: Any) -> None:
        """Does nothing: a CPU rank has one stream."""

    @contextmanager
    def stream(self, stream_: Any) -> Iterator[None]:
        """A context in which nothing changes."""
        yield

    def autocast(
        self, enabled: bool = True, dtype: torch.dtype = torch.bfloat16, cache_enabled: bool = True
    ) -> Callable[..., Any]:
        """torch's autocast for CPUs."""
        return torch.autocast("cpu", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)  # type: ignore[return-value]
