"""One line about the machine that a benchmark ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform


def describe_machine() -> str:
    """Cores, processor, Python, torch and colossalai."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass  # not a Linux machine: the short name stands
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "colossalai"))
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}, {packages}"
