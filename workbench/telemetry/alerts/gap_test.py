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
from bisect import bisect_right
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
        self._newest = self._usual = np.empty((0,))  # a row each look
        self._usual_at: list[int] = []  # the number of that look

    def look(self, gaps: np.ndarray) -> np.ndarray:
        """Which of the gaps are beyond chance; ``accept`` them unless something is wrong."""
        if self._newest.shape[1:] != gaps.shape:
            self._newest = self._usual = np.empty((0, *gaps.shape))
            self._usual_at = []
        self._looks += 1
        self._newest = np.concatenate([self._newest, gaps[None]])[-self._keep :]
        alpha = FALSE_ALARMS * 6 / (math.pi * self._looks) ** 2 / gaps.size / (len(self._effects) + 1)
        beyond = np.zeros(gaps.shape, dtype=bool)
        for window, least in self._effects.items():
            known = bisect_right(self._usual_at, self._looks - window)
            if known >= LEAST and len(self._newest) >= window:
                usual = self._usual[max(0, known - MOST) : known]
                moved = np.abs(_median(self._newest[-window:]) - usual.mean(axis=0))
                if (moved > least).any():
                    error = usual.std(axis=0, ddof=1) * np.sqrt(_variance(window, usual) + 1 / len(usual))
                    beyond |= moved > np.maximum(least, _t(alpha, len(usual) - 1) * error)
        if len(self._newest) == self._keep:
            moved, least = np.abs(_median(self._newest)), self._effects[max(self._effects)]
            if (moved > least).any():
                error = self._newest.std(axis=0, ddof=1) * np.sqrt(_variance(self._keep, self._newest))
                beyond |= moved > np.maximum(least, _t(alpha, self._keep - 1) * error)
        return beyond

    def accept(self) -> None:
        """The newest look is usual. (A fault does not become what is usual.)"""
        kept = MOST + self._keep
        self._usual = np.concatenate([self._usual, self._newest[-1:]])[-kept:]
        self._usual_at = [*self._usual_at, self._looks][-kept:]


def medians_of_others(values: np.ndarray) -> np.ndarray:
    """For each row of ``values`` (two or more rows of finite numbers), the median of the other rows."""
    count = len(values)
    order = values.argsort(axis=0)
    ranked, places = np.take_along_axis(values, order, axis=0), order.argsort(axis=0)
    low, high = (np.where(places <= at, ranked[at + 1], ranked[at]) for at in ((count - 2) // 2, (count - 1) // 2))
    return np.asarray((low + high) / 2)


def _median(values: np.ndarray) -> np.ndarray:
    """Over the rows of few finite numbers: ``np.median`` is ten times as slow on these."""
    ranked = np.sort(values, axis=0)
    return np.asarray((ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2)


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
