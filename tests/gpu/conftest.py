"""GPU tests run where NVML finds a device; anywhere else they are skipped, and that is the only skip on CI."""

from __future__ import annotations

import pynvml
import pytest


def gpu_count() -> int:
    """How many GPUs NVML sees; 0 without a driver."""
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if gpu_count():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU: NVML finds no device"))
