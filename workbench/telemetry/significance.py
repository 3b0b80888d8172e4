"""Whether a mean lies above a bound, from a few noisy values in the order of time: a pure function.

Trimmed t-test: J. W. Tukey, D. H. McLaughlin, "Less vulnerable confidence and significance procedures for location
based on a single sample: Trimming/Winsorization 1", Sankhya A 25 (1963). Effective number of values of a series whose
neighbours are correlated: G. V. Bayley, J. M. Hammersley, "The 'effective' number of independent observations in an
autocorrelated time series", JRSS Supplement 8 (1946), for a first-order autoregressive series.
"""

from __future__ import annotations

import math

import numpy as np

#: share of the values that is trimmed at either end
TRIMMED = 0.2
#: with fewer values their correlation cannot be estimated; they are taken as independent
_LEAST_CORRELATED = 8


def trimmed_mean(values: np.ndarray) -> float:
    """The mean without the lowest and the highest fifth."""
    cut = int(TRIMMED * values.size)
    return float(np.sort(values)[cut : values.size - cut].mean())


def p_above(values: np.ndarray, bound: float) -> float:
    """One-sided p-value of the trimmed t-test against "the mean is at most ``bound``"; 1.0 below two values.

    ``values``: in the order of time. Correlation of neighbours, as of steps in which a rank shares its core with
    another process, widens the standard error.
    """
    count = values.size
    if count < 2:
        return 1.0
    cut = int(TRIMMED * count)
    ordered = np.sort(values)
    clipped = np.clip(values, ordered[cut], ordered[count - cut - 1])
    excess = trimmed_mean(values) - bound
    left = count - 2 * cut
    variance = float(clipped.var(ddof=1)) * (count - 1) / (left * (left - 1))
    effective = count / _inflation(clipped)
    error = math.sqrt(variance * count / effective)
    if error <= 1e-12 * max(1e-300, float(np.abs(values).max())):
        return 0.0 if excess > 0 else 1.0
    from scipy.special import stdtr  # scipy.stats takes four times as long to import

    return float(stdtr(max(1.0, (left - 1) * effective / count), -excess / error))


def _inflation(values: np.ndarray) -> float:
    """By how much correlation of neighbours raises the variance of the mean: (1 + r) / (1 - r), at least 1."""
    if values.size < _LEAST_CORRELATED:
        return 1.0
    centred = values - values.mean()
    power = float(centred @ centred)
    if not power:
        return 1.0
    r = float(centred[1:] @ centred[:-1]) / power
    r = min(0.9, max(0.0, r + (1 + 4 * r) / values.size))  # the estimate is too low by that much (Kendall 1954)
    return (1 + r) / (1 - r)
