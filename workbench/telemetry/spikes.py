"""Loss spikes and jumps of the gradient norm: found while training, by what was usual in the steps before. Pure.

A step's global loss and norm are known on rank 0 at every step (``engine.nonfinite`` agrees on them), so it looks at
them there and logs what stands out, once, for everybody who reads the run. A step that is usual costs two comparisons
and two places in sorted lists.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

#: steps before a step that say what is usual
WINDOW = 50
#: steps that have to be there before anything is unusual
LEAST = 10
#: how many robust standard deviations above the median a spike is
THRESHOLD = 8.0
#: a spike is also at least so much of the median above it: a smooth curve has hardly any deviation
LEAST_SHARE = {"loss": 0.1, "grad_norm": 1.0}
#: the median absolute deviation of normal noise is its standard deviation times 0.6745 (Rousseeuw & Croux 1993)
MAD_OF_NORMAL = 0.6744897501960817


@dataclass(frozen=True, slots=True)
class Spike:
    """``value`` of ``name`` ("loss" or "grad_norm") at ``step``, where ``usual`` (a median) was to be expected.

    ``score``: how many robust standard deviations lie between.
    """

    step: int
    name: str
    value: float
    usual: float
    score: float


class SpikeFinder:
    """Give it every step's global ``loss`` and ``grad_norm``, in order.

    A step is compared with the ``window`` finite values before it: median and median absolute deviation, which up to
    half of the values can't spoil (Hampel 1974). Only upwards. Of consecutive steps above the threshold the first is
    the spike. Values that are not finite are no spikes: they are events of their own.
    """

    def __init__(self, *, window: int = WINDOW, threshold: float = THRESHOLD) -> None:
        self._threshold = threshold
        self._curves = {name: _Curve(window) for name in LEAST_SHARE}

    def look(self, step: int, *, loss: float, grad_norm: float) -> list[Spike]:
        """The spikes of this step."""
        found = []
        for name, value in (("loss", loss), ("grad_norm", grad_norm)):
            curve = self._curves[name]
            above = curve.score(value, LEAST_SHARE[name], self._threshold)
            is_above = above is not None and above[1] > self._threshold
            if above is not None and is_above and not curve.was_above:
                found.append(Spike(step, name, value, *above))
            curve.was_above = is_above
            curve.add(step, value)
        return found

    def rolled_back(self, step: int) -> None:
        """Training went back: what came after ``step`` was not."""
        for curve in self._curves.values():
            curve.forget_after(step)


class _Curve:
    """The last finite values of a curve, in their order and sorted."""

    def __init__(self, window: int) -> None:
        self.was_above = False
        self._window = window
        self._recent: deque[tuple[int, float]] = deque()
        self._sorted: list[float] = []

    def score(self, value: float, share: float, threshold: float) -> tuple[float, float] | None:
        """What is usual, and by how many robust standard deviations the value lies above it, ``threshold`` of which
        are ``share`` of the usual value at the least; None where nothing can be said, or it is no more than that."""
        if len(self._sorted) < LEAST or not math.isfinite(value):
            return None
        usual = _median(self._sorted)
        if value - usual <= abs(usual) * share:
            return None
        deviation = _median(sorted(abs(other - usual) for other in self._sorted))
        scale = max(deviation / MAD_OF_NORMAL, abs(usual) * share / threshold)
        return (usual, (value - usual) / scale) if scale > 0 else None

    def add(self, step: int, value: float) -> None:
        if not math.isfinite(value):
            return
        self._recent.append((step, value))
        insort(self._sorted, value)
        if len(self._recent) > self._window:
            self._remove(self._recent.popleft()[1])

    def forget_after(self, step: int) -> None:
        while self._recent and self._recent[-1][0] > step:
            self._remove(self._recent.pop()[1])
        self.was_above = False

    def _remove(self, value: float) -> None:
        del self._sorted[bisect_left(self._sorted, value)]


def _median(ordered: list[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
