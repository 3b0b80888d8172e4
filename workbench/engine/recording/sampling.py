"""Which elements of a tensor are recorded: all of a small one; of a large one a sample, the same in every training."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from workbench.engine.state.layout import Place


def most_elements(sizes: Iterable[int], budget: int) -> int:
    """The largest number of elements per tensor with which tensors of these ``sizes`` stay within ``budget`` together;
    at least 1."""
    left, rest = budget, sorted(sizes)
    for turn, size in enumerate(rest):
        share = left // (len(rest) - turn)
        if size > share:
            return max(1, share)
        left -= size
    return max(rest, default=1)


def positions(name: str, shape: Sequence[int], most: int) -> np.ndarray:
    """Numbers of the recorded elements in the flattened tensor, ascending (int64): all of ``most`` or fewer; of more, a
    random sample with replacement, which depends on the tensor's name and shape alone."""
    size = math.prod(shape)
    if size <= most:
        return np.arange(size)
    draw = np.random.default_rng(zlib.crc32(f"{name} {tuple(shape)}".encode()))
    return np.unique(draw.integers(0, size, most))


def held_positions(wanted: np.ndarray, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Those of the ``wanted`` elements that a rank with ``place`` holds: their numbers in ``wanted``, and in the rank's
    own flattened part. Both int64."""
    inner = 1 if place.dim is None else math.prod(place.shape[place.dim + 1 :])
    along = wanted // inner if place.dim is None or not place.shape else wanted // inner % place.shape[place.dim]
    own = sum(length for _, length in place.runs)
    local = np.full(wanted.shape, -1, dtype=np.int64)
    start = 0
    for first, length in place.runs:
        inside = (along >= first) & (along < first + length)
        local[inside] = start + along[inside] - first
        start += length
    held = np.flatnonzero(local >= 0)
    if place.dim is None:
        return held, local[held]
    outer = wanted[held] // (inner * place.shape[place.dim])
    return held, (outer * own + local[held]) * inner + wanted[held] % inner
