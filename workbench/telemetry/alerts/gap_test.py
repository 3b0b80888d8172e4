"""Whether ranks part from each other by more than chance: a sequential test. Pure but for what it keeps.

What a replica's loss or gradient is depends on the few samples of its share, so replicas differ in any healthy run. The
test takes the gaps between replicas (logarithms) at each look and compares the newest, or the median of the newest few,

- with those of the looks before, by Student's t for ``w`` values against ``n`` of the same unknown variance, which few
  looks know badly: (median_w - mean_n) / (s sqrt(e_w / w + 1 / n)), with n - 1 degrees of freedom; and
- with 0, for what was there from the beginning: median / (s sqrt(e_w / w)), with w - 1.

A median, whose variance is e = pi / 2 times that of a mean, as one wild look is nothing that lasts. Correlation of
neighbours widens it further (Bayley and Hammersley 1946). A rule looks again and again: the k-th look may spend
6 / (pi k)^2 of the run's probability of a false alarm, which all looks together never exceed (alpha spending: Lan and
DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70, 1983; Bonferroni over gaps and windows).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import numpy as np

#: the probability of a false alarm in a whole run, however long
FALSE_ALARMS = 1e-4
#: looks that say what is usual: at most, at least
MOST, LEAST = 50, 10


class GapTest:
    """``effects``: number of newest looks taken together -> by how much their median has to differ to count at all."""

    def __init__(self, effects: Mapping[int, float]) -> None:
        self._effects = effects
        self._keep = max(LEAST, *effects)
        self._looks = 0
        self._newest: deque[np.ndarray] = deque(maxlen=self._keep)
        self._usual: deque[tuple[int, np.ndarray]] = deque(maxlen=MOST + self._keep)

    def look(self, gaps: np.ndarray) -> np.ndarray:
        """Which of the gaps are beyond chance; ``accept`` them unless something is wrong."""
        if self._newest and self._newest[0].shape != gaps.shape:
            self._newest.clear()
            self._usual.clear()
        self._looks += 1
        self._newest.append(gaps)
        alpha = FALSE_ALARMS * 6 / (math.pi * self._looks) ** 2 / gaps.size / (len(self._effects) + 1)
        beyond = np.zeros(gaps.shape, dtype=bool)
        for window, least in self._effects.items():
            before = [each for at, each in self._usual if at <= self._looks - window][-MOST:]
            if len(before) >= LEAST and len(self._newest) >= window:
                usual = np.stack(before)
                error = usual.std(axis=0, ddof=1) * np.sqrt(_variance(window, usual) + 1 / len(usual))
                moved = np.median(list(self._newest)[-window:], axis=0) - usual.mean(axis=0)
                beyond |= np.abs(moved) > np.maximum(least, _t(alpha, len(usual) - 1) * error)
        if len(self._newest) == self._keep:
            newest = np.stack(self._newest)
            error = newest.std(axis=0, ddof=1) * np.sqrt(_variance(self._keep, newest))
            limit = np.maximum(self._effects[max(self._effects)], _t(alpha, self._keep - 1) * error)
            beyond |= np.abs(np.median(newest, axis=0)) > limit
        return beyond

    def accept(self) -> None:
        """The newest look is usual. (A fault does not become what is usual.)"""
        self._usual.append((self._looks, self._newest[-1]))


def _t(alpha: float, degrees: int) -> float:
    """What Student's t exceeds, either way, with probability ``alpha``."""
    from scipy.special import stdtrit

    return -float(stdtrit(degrees, alpha / 2))


def _variance(count: int, values: np.ndarray) -> np.ndarray | float:
    """Of the median of ``count`` values, in units of the variance of one: pi / 2 / count, times (1 + r) / (1 - r) where
    neighbours among ``values`` are correlated."""
    if count == 1:
        return 1.0
    centred = values - values.mean(axis=0)
    power = np.sum(centred**2, axis=0)
    r = np.sum(centred[1:] * centred[:-1], axis=0) / np.where(power > 0, power, 1.0)
    r = np.clip(r + (1 + 4 * r) / len(values), 0.0, 0.9)  # the estimate is too low by that much (Kendall 1954)
    return np.asarray(math.pi / 2 / count * (1 + r) / (1 - r))
