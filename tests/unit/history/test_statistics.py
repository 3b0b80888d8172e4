"""Statistics against SciPy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.history import statistics

# eighths are exact in binary, so that equal means are equal in any order of addition
values = st.lists(st.integers(-8000, 8000).map(lambda v: v / 8), min_size=2, max_size=8)


@pytest.mark.filterwarnings("ignore:Precision loss")  # SciPy's, on a side whose values are all the same
@settings(deadline=None)
@given(values, values)
def test_welch(a: list[float], b: list[float]) -> None:
    from scipy import stats

    found = statistics.welch(a, b)
    if np.ptp(a) == np.ptp(b) == 0:
        assert found.p == float(a[0] == b[0]) and found.low == found.high == found.difference
        return
    theirs = stats.ttest_ind(a, b, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    scale = max(1.0, abs(float(interval.high - interval.low)))
    assert found.t == pytest.approx(theirs.statistic, rel=1e-9, abs=1e-9)
    assert found.df == pytest.approx(theirs.df, rel=1e-9)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-7, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-7, abs=1e-9 * scale)


def test_welch_needs_repeats() -> None:
    with pytest.raises(ValueError, match="two values on each side"):
        statistics.welch([1.0], [1.0, 2.0])


@settings(deadline=None, max_examples=40)
@given(values.filter(lambda v: len(v) < 6), values.filter(lambda v: len(v) < 6))
def test_permutation(a: list[float], b: list[float]) -> None:
    from scipy import stats

    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: np.abs(x.mean(axis=axis) - y.mean(axis=axis)), vectorized=True, alternative="greater"
    )
    found = statistics.permutation(a, b)
    assert found.exact and found.arrangements == math.comb(len(a) + len(b), len(a))
    assert found.p == pytest.approx(theirs.pvalue)


def test_permutation_by_chance_is_near_the_exact_one() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(0, 1, 8).tolist(), random.normal(1, 1, 8).tolist()
    exact, drawn = statistics.permutation(a, b), statistics.permutation(a, b, most=5000)
    assert exact.exact and not drawn.exact
    # five standard deviations of a share estimated from 5,000 draws
    assert abs(exact.p - drawn.p) < 5 * math.sqrt(exact.p * (1 - exact.p) / 5000)


def test_holm() -> None:
    # the worked example of Holm's procedure: sorted p times the number of tests left, never falling
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == [] and statistics.holm([0.7, 0.8]) == [1.0, 1.0]


@given(st.floats(0, 0.9), st.floats(1e-6, 1e3))
def test_amdahl_gives_back_the_law(serial: float, one: float) -> None:
    ranks = [1, 2, 4, 8, 64]
    fit = statistics.amdahl(ranks, [one * (serial + (1 - serial) / n) for n in ranks])
    assert fit is not None and fit.serial == pytest.approx(serial, abs=1e-9) and fit.one_rank_s == pytest.approx(one)
    assert fit.error == pytest.approx(0, abs=1e-6)
    assert fit.speed_up(4) == pytest.approx(1 / (serial + (1 - serial) / 4))
    # its closed-form limit, where the fit is away from rounding
    assert serial < 1e-3 or fit.limit == pytest.approx(1 / serial, rel=1e-4)


def test_amdahl_error_is_that_of_a_non_linear_fit() -> None:
    from scipy import optimize

    ranks = np.array([1, 1, 2, 2, 4, 8, 8], dtype=float)
    times = 3.0 * (0.1 + 0.9 / ranks) * (1 + 0.05 * np.random.default_rng(0).normal(size=ranks.size))
    best, covariance = optimize.curve_fit(lambda n, one, s: one * (s + (1 - s) / n), ranks, times, p0=(3, 0.1))
    fit = statistics.amdahl(ranks.tolist(), times.tolist())
    assert fit is not None
    assert (fit.one_rank_s, fit.serial) == pytest.approx(best, rel=1e-5)
    assert fit.error == pytest.approx(math.sqrt(covariance[1, 1]), rel=1e-4)


def test_amdahl_without_spare_points() -> None:
    assert statistics.amdahl([2, 2], [1.0, 1.1]) is None
    two = statistics.amdahl([1, 2], [1.0, 0.6])
    assert two is not None and two.serial == pytest.approx(0.2) and math.isnan(two.error)
    better = statistics.amdahl([1, 2], [1.0, 0.4])
    assert better is not None and better.serial < 0 and math.isinf(better.limit)
