"""The test of significance: closed forms, scipy's answer, and how often it errs on made-up noise (fixed seeds)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from workbench.telemetry.significance import p_above, trimmed_mean

DRAWS, STEPS = 2000, 50


def test_without_trimming_it_is_students_test() -> None:
    from scipy import stats

    values = np.array([3.0, 5.0, 4.0, 7.0])
    assert p_above(values, 2.0) == pytest.approx(stats.ttest_1samp(values, 2.0, alternative="greater").pvalue)


def test_five_values_by_hand() -> None:
    """Of 1, 2, 3, 4, 100 the ends are trimmed: mean 3; winsorised 2, 2, 3, 4, 4 with variance 1."""
    from scipy import stats

    values = np.array([100.0, 1.0, 3.0, 4.0, 2.0])
    assert trimmed_mean(values) == 3
    error = np.sqrt(1.0 * 4 / (3 * 2))
    assert p_above(values, 1.0) == pytest.approx(stats.t.sf(2 / error, 2))


@pytest.mark.parametrize(("value", "p"), [(5.0, 0.0), (3.0, 1.0), (4.0, 1.0)])
def test_values_without_noise_are_certain(value: float, p: float) -> None:
    assert p_above(np.full(12, value), 4.0) == p


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_value_tells_nothing(count: int) -> None:
    assert p_above(np.ones(count), 0.0) == 1.0


def gaussian(random: np.random.Generator) -> np.ndarray:
    return random.normal(size=STEPS)


def heavy_tailed(random: np.random.Generator) -> np.ndarray:
    return random.standard_t(1.5, size=STEPS)


def correlated(random: np.random.Generator) -> np.ndarray:
    """Neighbours correlate by 0.6, as when another process stays for some steps."""
    out = np.empty(STEPS)
    now = random.normal() / 0.8
    for place in range(STEPS):
        now = 0.6 * now + random.normal()
        out[place] = now
    return out


@pytest.mark.parametrize(
    ("noise", "most"),
    [(gaussian, 0.012), (heavy_tailed, 0.01), (correlated, 0.025)],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_noise_is_seldom_taken_for_a_difference(
    noise: Callable[[np.random.Generator], np.ndarray], most: float
) -> None:
    random = np.random.default_rng(0)
    errors = sum(p_above(noise(random), 0.0) < 0.01 for _ in range(DRAWS))
    assert errors / DRAWS <= most


@pytest.mark.parametrize(("noise", "shift"), [(gaussian, 0.8), (heavy_tailed, 1.5), (correlated, 2.5)])
def test_a_difference_is_found(noise: Callable[[np.random.Generator], np.ndarray], shift: float) -> None:
    random = np.random.default_rng(0)
    found = sum(p_above(noise(random) + shift, 0.0) < 0.01 for _ in range(DRAWS))
    assert found / DRAWS >= 0.9
