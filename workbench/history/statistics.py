"""The statistics of a comparison: pure functions of numbers.

Welch's test: B. L. Welch, "The generalization of 'Student's' problem when several different population variances are
involved", Biometrika 34 (1947), with the Welch-Satterthwaite degrees of freedom. Permutation test: E. J. G. Pitman,
"Significance tests which may be applied to samples from any populations" (1937). Several tests at once: S. Holm, "A
simple sequentially rejective multiple test procedure" (1979). Amdahl's law: G. M. Amdahl, AFIPS (1967).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Welch:
    """Welch's t-test of mean(a) - mean(b), two-sided; ``low`` and ``high`` bound the 95 % confidence interval."""

    difference: float
    t: float
    df: float
    p: float
    low: float
    high: float


def welch(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Welch:
    """Whether two means differ, with unequal variances. ``ValueError`` below two values on a side.

    Where neither side varies at all, ``p`` is 1 for equal means and 0 otherwise.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if min(x.size, y.size) < 2:
        raise ValueError(f"Welch's test needs two values on each side, not {x.size} and {y.size}")
    from scipy.special import stdtr, stdtrit  # scipy.stats takes four times as long to import

    difference = float(x.mean() - y.mean())
    u, v = float(x.var(ddof=1)) / x.size, float(y.var(ddof=1)) / y.size
    error = math.sqrt(u + v)
    if error == 0.0:
        t = math.copysign(math.inf, difference) if difference else 0.0
        df = float(x.size + y.size - 2)
        return Welch(difference=difference, t=t, df=df, p=0.0 if difference else 1.0, low=difference, high=difference)
    # ratios instead of squares: variances near the smallest double would underflow to 0/0
    share = u / (u + v)
    df = 1.0 / (share**2 / (x.size - 1) + (1.0 - share) ** 2 / (y.size - 1))
    t = difference / error
    reach = float(stdtrit(df, 0.975)) * error
    p = 2 * float(stdtr(df, -abs(t)))
    return Welch(difference=difference, t=t, df=df, p=p, low=difference - reach, high=difference + reach)


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """Permutation test of the absolute difference of means: ``p`` over ``arrangements`` (all of them if ``exact``)."""

    p: float
    arrangements: int
    exact: bool


def permutation(a: Sequence[float], b: Sequence[float], *, most: int = 20_000, seed: int = 0) -> Permutation:
    """How often a random split of all values differs at least as much as the one observed.

    All splits where there are at most ``most``; otherwise ``most`` random ones, the observed one counted in.
    """
    values = np.asarray([*a, *b], dtype=float)
    size, total = len(a), float(values.sum())
    observed = abs(float(np.mean(a)) - float(np.mean(b)))
    least = observed - 1e-12 * max(1.0, float(np.abs(values).max()))

    def differences(sums: np.ndarray) -> np.ndarray:
        return np.abs(sums / size - (total - sums) / (values.size - size))

    count = math.comb(values.size, size)
    if count <= most:
        chosen = np.fromiter(
            itertools.chain.from_iterable(itertools.combinations(range(values.size), size)), dtype=np.intp
        )
        found = differences(values[chosen.reshape(count, size)].sum(axis=1))
        return Permutation(p=float((found >= least).mean()), arrangements=count, exact=True)
    random = np.random.default_rng(seed)
    orders = random.permuted(np.broadcast_to(values, (most, values.size)), axis=1)
    hits = int((differences(orders[:, :size].sum(axis=1)) >= least).sum())
    return Permutation(p=(hits + 1) / (most + 1), arrangements=most, exact=False)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several tests (Holm's step-down), in the order given."""
    count = len(p_values)
    adjusted = [0.0] * count
    highest = 0.0
    for place, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (count - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True, kw_only=True)
class Amdahl:
    """A fit of t(N) = t1 (s + (1 - s)/N). ``error`` is the standard error of ``serial``; NaN without spare points."""

    serial: float
    error: float
    one_rank_s: float

    def speed_up(self, ranks: float) -> float:
        """Return how many times as fast as one rank so many ranks are."""
        return 1.0 / (self.serial + (1.0 - self.serial) / ranks)

    @property
    def limit(self) -> float:
        """The speed-up that no number of ranks passes; infinite where nothing is serial."""
        return 1.0 / self.serial if self.serial > 0 else math.inf


def amdahl(ranks: Sequence[float], seconds: Sequence[float]) -> Amdahl | None:
    """Least-squares fit of Amdahl's law to times for the same work; None below two different numbers of ranks.

    Linear in (1, 1/N): t = a + b/N, s = a/(a + b). The standard error of s follows from the covariance of (a, b) by the
    delta method (gradient of s: (b, -a)/(a + b)^2).
    """
    n, t = np.asarray(ranks, dtype=float), np.asarray(seconds, dtype=float)
    if np.unique(n).size < 2:
        return None
    design = np.stack([np.ones_like(n), 1.0 / n], axis=1)
    (a, b), *_ = np.linalg.lstsq(design, t, rcond=None)
    whole = a + b
    error = math.nan
    if n.size > 2:
        variance = float(((design @ np.array([a, b]) - t) ** 2).sum()) / (n.size - 2)
        gradient = np.array([b, -a]) / whole**2
        error = math.sqrt(max(0.0, variance * float(gradient @ np.linalg.inv(design.T @ design) @ gradient)))
    return Amdahl(serial=float(a / whole), error=error, one_rank_s=float(whole))
