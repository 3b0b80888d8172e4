"""Spikes in curves whose spikes are known."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.telemetry.spikes import find
from workbench.telemetry.store import Columns


def metrics(loss: np.ndarray, norm: np.ndarray | None = None) -> Columns:
    steps = np.arange(1, loss.size + 1)
    return {
        "step": steps,
        "time": 1000.0 + steps,
        "loss": loss,
        "grad_norm": np.ones(loss.size) if norm is None else norm,
    }


def curve(steps: int = 500, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    """A loss that falls, with noise."""
    return 1.5 + 4 * np.exp(-np.arange(steps) / 80) + np.random.default_rng(seed).normal(0, noise, steps)


def test_planted_spikes_are_found_and_nothing_else() -> None:
    loss, norm = curve(), 1.0 + 0.1 * curve(seed=1)
    loss[[199, 399]] += 3.0
    norm[299] *= 20
    found = find(metrics(loss, norm))
    assert [(spike.step, spike.name) for spike in found] == [(200, "loss"), (300, "grad_norm"), (400, "loss")]
    assert found[0].value == loss[199] and found[0].time == 1200.0
    assert found[0].usual == pytest.approx(np.median(loss[149:199]))
    spread = np.median(np.abs(loss[149:199] - np.median(loss[149:199]))) / 0.6744897501960817
    assert found[0].score == pytest.approx((loss[199] - found[0].usual) / max(spread, 0.1 * found[0].usual / 8))


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_a_falling_curve_have_none(seed: int) -> None:
    assert find(metrics(curve(2000, 0.1, seed))) == []


def test_a_plateau_after_a_jump_is_one_spike_and_then_usual() -> None:
    loss = curve()
    loss[250:] += 5.0
    assert [spike.step for spike in find(metrics(loss))] == [251]


def test_the_first_steps_a_constant_and_numbers_that_are_not_finite_are_no_spikes() -> None:
    loss = np.full(300, 2.0)
    loss[4] = 100.0
    loss[[100, 101]] = np.nan, np.inf
    loss[200] = 2.1  # less than a tenth above
    assert find(metrics(loss)) == []
    loss[201] = 3.0
    assert [spike.step for spike in find(metrics(loss))] == [202]
    assert find(metrics(np.empty(0))) == []
    assert find(metrics(np.array([1.0]))) == []


def test_what_comes_later_changes_nothing_before() -> None:
    loss = curve(9000)
    loss[[1000, 5000, 8500]] += 4
    whole = find(metrics(loss))
    assert [spike.step for spike in whole] == [1001, 5001, 8501]
    assert find(metrics(loss[:6000])) == whole[:2]
