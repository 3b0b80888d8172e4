"""Which addresses of this process are shared with other ranks: data there are no state of a training."""

from __future__ import annotations

import weakref
from typing import Any

#: first address, address after the last
_regions: list[tuple[int, int]] = []


def note_region(memory: Any, first: int, end: int) -> None:
    """Addresses from ``first`` to ``end`` (exclusive) are shared as long as the mapping ``memory`` exists."""
    region = (first, end)
    _regions.append(region)
    weakref.finalize(memory, _regions.remove, region).atexit = False


def is_shared(address: int) -> bool:
    """Whether ``share`` mapped this address."""
    return any(first <= address < end for first, end in _regions)
