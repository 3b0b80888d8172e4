"""CUDA_VISIBLE_DEVICES read as CUDA reads it: pure."""

from __future__ import annotations


def entries(setting: str | None) -> list[str] | None:
    """The entries that count, in their order: indices and (shortened) UUIDs; None when the variable is not set.

    As CUDA does, reading ends at the first entry that names no device, such as ``-1`` or an empty one.
    """
    if setting is None:
        return None
    found: list[str] = []
    for entry in (part.strip() for part in setting.split(",")):
        if not (entry.isdecimal() or is_uuid(entry)):
            break
        found.append(entry)
    return found


def is_uuid(entry: str) -> bool:
    """Whether an entry is the (shortened) UUID of a GPU, or of a part of one (MIG)."""
    return entry.startswith(("GPU-", "MIG-"))
