"""Spikes in curves whose spikes are known."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.telemetry.spikes import Spike, SpikeFinder


def find(loss: np.ndarray, norm: np.ndarray | None = None) -> list[Spike]:
    """Spikes of whole curves, which begin at step 1."""
    finder, norms = SpikeFinder(), np.ones(loss.size) if norm is None else norm
    both = enumerate(zip(loss.tolist(), norms.tolist(), strict=True), start=1)
    return [spike for step, (one, other) in both for spike in finder.look(step, loss=one, grad_norm=other)]


def curve(steps: int = 500, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    """A loss that falls, with noise."""
    return 1.5 + 4 * np.exp(-np.arange(steps) / 80) + np.random.default_rng(seed).normal(0, noise, steps)


def test_planted_spikes_are_found_and_nothing_else() -> None:
    loss, norm = curve(), 1.0 + 0.1 * curve(seed=1)
    loss[[199, 399]] += 3.0
    norm[299] *= 20
    found = find(loss, norm)
    assert [(spike.step, spike.name) for spike in found] == [(200, "loss"), (300, "grad_norm"), (400, "loss")]
    assert found[0].value == loss[199]
    assert found[0].usual == pytest.approx(np.median(loss[149:199]))
    spread = np.median(np.abs(loss[149:199] - np.median(loss[149:199]))) / 0.6744897501960817
    assert found[0].score == pytest.approx((loss[199] - found[0].usual) / max(spread, 0.1 * found[0].usual / 8))


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_a_falling_curve_have_none(seed: int) -> None:
    assert find(curve(2000, 0.1, seed)) == []


def test_a_plateau_after_a_jump_is_one_spike_and_then_usual() -> None:
    loss = curve()
    loss[250:] += 5.0
    assert [spike.step for spike in find(loss)] == [251]


def test_the_first_steps_a_constant_and_numbers_that_are_not_finite_are_no_spikes() -> None:
    loss = np.full(300, 2.0)
    loss[4] = 100.0
    loss[[100, 101]] = np.nan, np.inf
    loss[200] = 2.1  # less than a tenth above
    assert find(loss) == []
    loss[201] = 3.0
    assert [spike.step for spike in find(loss)] == [202]
    assert find(np.empty(0)) == []
    assert find(np.array([1.0])) == []


def test_steps_that_a_rollback_took_back_are_forgotten() -> None:
    loss, finder = curve(60), SpikeFinder()
    wild = [10.0 if step > 30 else value for step, value in enumerate(loss.tolist(), start=1)]
    assert [
        spike.step for step, value in enumerate(wild, start=1) for spike in finder.look(step, loss=value, grad_norm=1)
    ] == [31]
    finder.rolled_back(30)
    again = [finder.look(step, loss=float(loss[step - 1]), grad_norm=1) for step in range(31, 60)]
    assert not any(again)
    assert [spike.step for spike in finder.look(60, loss=10.0, grad_norm=1)] == [60], "and it is wild again"
