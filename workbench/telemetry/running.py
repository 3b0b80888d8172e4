"""Running averages of noisy estimates, with intervals in which the true value lies: pure functions.

The average of the first 1 / ``WEIGHT`` estimates is their mean, later ones count exponentially less with their age.
The variance of an average with weights w that add up to 1 is estimated by the spread of the estimates themselves,

    var = sum(w^2) / (1 - sum(w^2)) * sum(w (x - mean)^2),

which is exact for independent estimates of equal variance (those of different steps are from different batches);
1 / sum(w^2) is the effective number of estimates (Kish 1965, "Survey Sampling", section 8.2), and one less than that
the degrees of freedom of Student's t. A value that drifts widens its interval.
"""

from __future__ import annotations

import math

import numpy as np

#: weight of the newest of many estimates: as if the last 2 / WEIGHT - 1 = 39 were averaged
WEIGHT = 0.05
#: probability that an interval holds the true value
CONFIDENCE = 0.9
#: an interval needs as many estimates
LEAST = 3

#: per row: how many estimates, the sum of the squares of their weights, their average
State = tuple[np.ndarray, np.ndarray, np.ndarray]


def follow(estimates: np.ndarray, before: State | None) -> tuple[np.ndarray, np.ndarray, State]:
    """The running averages of ``estimates`` (rows, steps) after each step, the sum of the squares of the weights of
    each (rows, steps), and what to go on from. NaN is passed over; before the first estimate both are NaN."""
    count = estimates.shape[0]
    number, squares, mean = before or (np.zeros(count), np.zeros(count), np.full(count, math.nan))
    means, shares = np.empty(estimates.shape), np.empty(estimates.shape)
    for place in range(estimates.shape[1]):
        new = estimates[:, place]
        known = ~np.isnan(new)
        number = number + known
        weight = np.maximum(1 / np.maximum(number, 1), WEIGHT)
        squares = np.where(known, (1 - weight) ** 2 * squares + weight**2, squares)
        mean = np.where(known, np.where(number == 1, new, mean + weight * (new - mean)), mean)
        means[:, place], shares[:, place] = mean, np.where(number > 0, squares, math.nan)
    return means, shares, (number, squares, mean)


def quantile(shares: np.ndarray) -> np.ndarray:
    """Half the width of the interval of ``CONFIDENCE`` in standard errors; infinite below ``LEAST`` estimates."""
    from scipy.special import stdtrit

    freedom = 1 / shares - 1
    enough = freedom > LEAST - 1.5
    return np.where(enough, stdtrit(np.where(enough, freedom, 1.0), (1 + CONFIDENCE) / 2), math.inf)


def interval_of_mean(
    mean: np.ndarray, mean_of_squares: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the interval of an average; NaN below ``LEAST`` estimates."""
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.maximum(mean_of_squares - mean**2, 0) * shares / (1 - shares)
        half = quantile(shares) * np.sqrt(variance)
    half = np.where(np.isfinite(half), half, math.nan)
    return mean - half, mean + half


def interval_of_ratio(
    top: np.ndarray, bottom: np.ndarray, squares: tuple[np.ndarray, np.ndarray, np.ndarray], shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the interval of the quotient of two positive means, of which ``top`` and ``bottom`` are averages with
    the same weights. ``squares``: the averages of top^2, of top times bottom, and of bottom^2.

    Fieller 1954, "Some Problems in Interval Estimation", JRSS B 16: all quotients R for which top - R bottom is not
    significantly different from 0. The upper end is infinite where ``bottom`` itself is not significantly above 0.
    """
    spread = shares / (1 - np.minimum(shares, 1 - 1e-12))
    t_sq = quantile(shares) ** 2
    is_known = np.isfinite(t_sq)
    t_sq = np.where(is_known, t_sq, 0.0)
    v_top = np.maximum(squares[0] - top**2, 0) * spread
    v_both = (squares[1] - top * bottom) * spread
    v_bottom = np.maximum(squares[2] - bottom**2, 0) * spread
    a, b, c = bottom**2 - t_sq * v_bottom, top * bottom - t_sq * v_both, top**2 - t_sq * v_top
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(np.maximum(b**2 - a * c, 0))
        lower, upper = (b - root) / a, (b + root) / a  # in this order where a > 0
    is_bounded = is_known & (a > 0) & (bottom > 0)
    # with a < 0 the quotients lie outside of two roots; of the positive ones those above the greater
    low = np.where(is_bounded, lower, np.where(is_known & (b**2 > a * c) & (c > 0), lower, 0.0))
    high = np.where(is_bounded, upper, math.inf)
    return np.maximum(np.nan_to_num(low), 0.0), high
