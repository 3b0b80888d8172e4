"""What ``%dist_push`` copies: every rank gets, and keeps, a copy of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

#: a push of more bytes, over all ranks, is warned of
_MUCH_BYTES = 256 * 2**20
_DEPTH = 3


def warn_of_copies(values: Mapping[str, Any], ranks: int) -> str:
    """Say what pushing ``values`` to so many ranks costs and what is better; "" for little data."""
    sizes = {name: bytes_of(value) for name, value in values.items()}
    total = sum(sizes.values())
    if total * ranks <= _MUCH_BYTES:
        return ""
    largest = max(sizes, key=lambda name: sizes[name])
    return (
        f"warning: {largest} is large: {total / 1e6:,.0f} MB are sent through the kernel to each of {ranks} ranks, "
        f"which keep {total * ranks / 1e6:,.0f} MB together. Load data on the ranks instead, once for all: "
        f"{largest} = share(lambda: ...) in a cell"
    )


def bytes_of(value: Any, depth: int = _DEPTH) -> int:
    """Bytes of an array, tensor or table, or of those in a container; of other values what Python says."""
    own = getattr(value, "nbytes", None)
    if isinstance(own, int):
        return own
    if callable(getattr(value, "memory_usage", None)):  # a pandas table
        return int(value.memory_usage().sum())
    if depth and isinstance(value, Mapping):
        return sum(bytes_of(part, depth - 1) for part in value.values())
    if depth and isinstance(value, list | tuple):
        return sum(bytes_of(part, depth - 1) for part in value)
    tensors = getattr(value, "tensors", None)  # a TensorDataset
    return bytes_of(tensors, depth - 1) if depth and isinstance(tensors, tuple) else sys.getsizeof(value)
