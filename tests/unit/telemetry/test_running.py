"""Running averages and their intervals, against plain NumPy and simulations with a known answer."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.telemetry import running


def noise_estimates(
    random: np.random.Generator, steps: int, *, true_sq: float, trace: float, replicas: int = 2, share: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """S and |G|^2 of each step as McCandlish et al. 2018, appendix A.1, estimate them, from gradients that are drawn
    sample by sample: a mean of squared length ``true_sq`` and noise whose covariance has the trace ``trace``."""
    size = 100
    mean = np.full(size, np.sqrt(true_sq / size))
    noise = random.normal(size=(steps, replicas, share, size)) * np.sqrt(trace / size)
    local = (mean + noise).mean(axis=2)
    small = np.mean(np.sum(local**2, axis=2), axis=1)
    big = np.sum(local.mean(axis=1) ** 2, axis=1)
    batch = replicas * share
    return (small - big) / (1 / share - 1 / batch), (batch * big - share * small) / (batch - share)


def interval(top: np.ndarray, bottom: np.ndarray) -> tuple[float, float, float]:
    """The quotient of the averages of all steps and the ends of its interval."""
    table = np.stack([top, bottom, top**2, top * bottom, bottom**2])
    means, shares, _ = running.follow(table, None)
    low, high = running.interval_of_ratio(means[0], means[1], (means[2], means[3], means[4]), shares[0])
    return float(means[0, -1] / means[1, -1]), float(low[-1]), float(high[-1])


@pytest.mark.parametrize("steps", [6, 20, 80])
@pytest.mark.parametrize(("true_sq", "trace"), [(4.0, 60.0), (1.0, 200.0)])
def test_the_interval_of_a_noise_scale_holds_the_true_one(steps: int, true_sq: float, trace: float) -> None:
    """In nine of ten runs, also where the gradient is hard to tell from its noise."""
    random, held, runs = np.random.default_rng(steps), 0, 300
    for _ in range(runs):
        _, low, high = interval(*noise_estimates(random, steps, true_sq=true_sq, trace=trace))
        held += low <= trace / true_sq <= high
    assert 0.86 <= held / runs <= 0.97


def test_a_noise_scale_without_an_upper_end_looks_so() -> None:
    """Noise of 1,000 times the gradient: 8 samples a step do not tell how much it is, and the interval says it."""
    random = np.random.default_rng(0)
    found = [interval(*noise_estimates(random, 10, true_sq=0.01, trace=1000.0)) for _ in range(40)]
    assert sum(np.isinf(high) for _, _, high in found) >= 34
    assert sum(0 < low <= 1e5 for _, low, _ in found) >= 34, "what is known is a lower end"


def test_one_outlier_widens_the_interval() -> None:
    random = np.random.default_rng(1)
    top, bottom = noise_estimates(random, 8, true_sq=10.0, trace=60.0)
    _, low, high = interval(top, bottom)
    _, low_with, high_with = interval(np.append(top, 10 * top[-1]), np.append(bottom, bottom[-1]))
    assert high / low < 4 and high_with / max(low_with, 1e-9) > 2 * high / low


@pytest.mark.parametrize("steps", [5, 39, 200])
def test_the_interval_of_a_mean_holds_the_true_one(steps: int) -> None:
    random, runs = np.random.default_rng(steps), 2000
    values = random.normal(0.7, 0.1, size=(runs, steps))
    means, shares, _ = running.follow(np.concatenate([values, values**2]), None)
    low, high = running.interval_of_mean(means[:runs], means[runs:], shares[:runs])
    assert np.mean((low[:, -1] <= 0.7) & (high[:, -1] >= 0.7)) == pytest.approx(running.CONFIDENCE, abs=0.025)


def test_the_first_estimates_are_a_plain_mean_and_later_ones_forget() -> None:
    values = np.random.default_rng(2).normal(size=(1, 100))
    means, shares, _ = running.follow(values, None)
    assert means[0, :20] == pytest.approx(np.cumsum(values[0, :20]) / np.arange(1, 21))
    assert shares[0, :20] == pytest.approx(1 / np.arange(1, 21))
    weights = np.append(np.full(20, 0.95**80 / 20), 0.05 * 0.95 ** np.arange(79, -1, -1))
    assert means[0, -1] == pytest.approx(weights @ values[0]) and shares[0, -1] == pytest.approx(weights @ weights)


def test_read_by_pieces_it_is_the_same_and_gaps_are_passed_over() -> None:
    values = np.random.default_rng(3).normal(size=(2, 30))
    values[0, 4:9] = np.nan
    whole = running.follow(values, None)
    first = running.follow(values[:, :7], None)
    second = running.follow(values[:, 7:], first[2])
    for place in range(2):
        np.testing.assert_array_equal(np.concatenate([first[place], second[place]], axis=1), whole[place])
    known = values[0][~np.isnan(values[0])]
    assert whole[0][0, -1] == running.follow(known[None], None)[0][0, -1]


def test_no_interval_before_there_are_enough_estimates() -> None:
    values = np.array([[1.0, 1.2, 0.9, 1.1]])
    means, shares, _ = running.follow(np.concatenate([values, values**2]), None)
    low, high = running.interval_of_mean(means[:1], means[1:], shares[:1])
    assert np.isnan(low[0]).tolist() == [True, True, False, False] and (high - low)[0, 3] > 0
