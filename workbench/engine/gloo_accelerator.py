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
        return 0

    def set_device(self, device: Any = None) -> None: ...

    def get_device_name(self, device: Any = None) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def synchronize(self, device: Any = None) -> None: ...

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        """State of the CPU generator; upstream passes ``device`` on to a function that takes none."""
        return torch.get_rng_state()

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [torch.get_rng_state()]

    def set_rng_state_all(self, new_states: list[torch.Tensor]) -> None:
        torch.set_rng_state(new_states[0])

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def initial_seed(self) -> int:
        return torch.initial_seed()

    def empty_cache(self) -> None: ...

    def memory_allocated(self, device: Any = None) -> int:
        return psutil.Process().memory_info().rss

    max_memory_allocated = memory_allocated

    def reset_max_memory_allocated(self, device: Any = None) -> None: ...

    def reset_max_memory_cached(self, device: Any = None) -> None: ...

    def reset_peak_memory_stats(self, device: Any = None) -> None: ...

    def Stream(self, device: Any = None, priority: int = 0, **kwargs: Any) -> _Stream:
        return self._stream

    def Event(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> _Event:
        return _Event()

    def current_stream(self, device: Any = None) -> _Stream:
        return self._stream

    def default_stream(self, device: Any = None) -> _Stream:
        return self._stream

    def set_stream(self, stream_: Any) -> None: ...

    @contextmanager
    def stream(self, stream_: Any) -> Iterator[None]:
        yield

    def autocast(
        self, enabled: bool = True, dtype: torch.dtype = torch.bfloat16, cache_enabled: bool = True
    ) -> Callable[..., Any]:
        return torch.autocast("cpu", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)  # type: ignore[return-value]
