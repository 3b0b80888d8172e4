"""Process-wide settings of torch: every run starts from torch's defaults and gives back what it found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.backends import cudnn


@dataclass(frozen=True, slots=True)
class _Setting:
    """How a setting is read and written; ``default()`` is its value in a process that nobody changed."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    default: Callable[[], Any]


def _of(owner: Any, name: str, default: bool) -> _Setting:
    return _Setting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value), lambda: default)


def _autocast(device: str, dtype: torch.dtype) -> _Setting:
    """(enabled, dtype) of autocast outside any ``with torch.autocast``."""

    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    return _Setting(
        lambda: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)), write, lambda: (False, dtype)
    )


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # None: no function mode that slows every call


def _threads_of_rank() -> int:
    """Threads that the rank started with, as its preload function sets them."""
    return int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))


_SETTINGS: dict[str, _Setting] = {
    "default dtype": _Setting(torch.get_default_dtype, torch.set_default_dtype, lambda: torch.float32),
    "default device": _Setting(torch.get_default_device, _set_default_device, lambda: torch.device("cpu")),
    "gradient mode": _Setting(torch.is_grad_enabled, torch.set_grad_enabled, lambda: True),
    "threads": _Setting(torch.get_num_threads, torch.set_num_threads, _threads_of_rank),
    "deterministic algorithms (on, warn only)": _Setting(
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
        lambda: (False, False),
    ),
    "anomaly mode (on, checks NaN)": _Setting(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.autograd.set_detect_anomaly(*value),
        lambda: (False, True),
    ),
    "autocast on CPU (on, dtype)": _autocast("cpu", torch.bfloat16),
    "autocast on CUDA (on, dtype)": _autocast("cuda", torch.float16),
    "float32 matmul precision": _Setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, lambda: "highest"
    ),
    "cudnn.enabled": _of(cudnn, "enabled", True),
    "cudnn.benchmark": _of(cudnn, "benchmark", False),
    "cudnn.deterministic": _of(cudnn, "deterministic", False),
    "cudnn.allow_tf32": _of(cudnn, "allow_tf32", True),
}


@contextmanager
def torch_defaults() -> Iterator[str]:
    """While entered, torch's process-wide settings begin with their defaults; leaving gives back what was found.

    Yields what was not default, as "name value (default: value)" joined by commas; "" when everything was. What is
    entered may change settings for itself: they hold until it is left.
    """
    found = {name: setting.read() for name, setting in _SETTINGS.items()}
    changed = changed_settings()
    _write({name: setting.default() for name, setting in _SETTINGS.items()})
    try:
        yield ", ".join(f"{name} {text}" for name, text in changed.items())
    finally:
        _write(found)


def changed_settings() -> dict[str, str]:
    """What is not torch's default now: name -> "value (default: value)"."""
    found = {name: (setting.read(), setting.default()) for name, setting in _SETTINGS.items()}
    return {name: f"{now} (default: {default})" for name, (now, default) in found.items() if now != default}


def _write(values: dict[str, Any]) -> None:
    """Write what differs: some setters cost time or start threads even when nothing changes."""
    for name, value in values.items():
        if _SETTINGS[name].read() != value:
            _SETTINGS[name].write(value)
