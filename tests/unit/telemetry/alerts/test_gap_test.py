"""How often the test of ranks that part is wrong over healthy runs, which are simulated, and what it finds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from workbench.telemetry.alerts import gap_test
from workbench.telemetry.alerts.gap_test import GapTest
from workbench.telemetry.alerts.rules import RankDiffers
from workbench.telemetry.alerts.steps import StepView

#: simulated at once: the test takes them for gaps of one run, so that each is allowed its share only
RUNS, STEPS = 300, 300


def losses(runs: int, *, replicas: int = 2, samples: int = 5, kind: str = "normal", seed: int = 0) -> np.ndarray:
    """Losses of the replicas of healthy runs whose shares of a batch have ``samples`` samples: [steps, runs, replicas].
    They fall from 5 to 1; samples differ by little at first, then by a third of the loss, skewed, as losses are."""
    random = np.random.default_rng(seed)
    step = np.arange(STEPS)[:, None, None, None]
    level = 1 + 4 * np.exp(-step / 80)
    spread = 0.35 * (1 - 0.9 * np.exp(-step / 15))
    noise = random.normal(size=(STEPS, runs, replicas, samples))
    if kind == "correlated":  # neighbours in a dataset that is not shuffled are alike
        for at in range(1, STEPS):
            noise[at] = 0.5 * noise[at - 1] + math.sqrt(0.75) * noise[at]
    of_samples = level * np.exp(spread * noise - spread**2 / 2)
    if kind == "odd":  # one sample in fifty has three times the loss
        of_samples *= np.where(random.random(noise.shape) < 0.02, 3.0, 1.0)
    return np.asarray(of_samples.mean(axis=3))


def alarms(gaps: np.ndarray, effects: dict[int, float]) -> int:
    """In how many runs there is one: gaps [steps, runs, replicas]."""
    test, found = GapTest(effects), np.zeros(gaps.shape[1:], dtype=bool)
    for row in gaps:
        found |= test.look(row)
        test.accept()
    return int(found.any(axis=1).sum())


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 0), ({"replicas": 8}, 0), ({"samples": 1}, 0), ({"kind": "correlated"}, 2), ({"kind": "odd"}, 0)],
    ids=str,
)
def test_false_alarms_of_300_healthy_runs(monkeypatch: Any, options: dict[str, Any], most: int) -> None:
    """Batches of 10 and of 2 over 2 ranks, of 40 over 8; samples that follow each other alike, or some that are odd."""
    monkeypatch.setattr(gap_test, "FALSE_ALARMS", gap_test.FALSE_ALARMS * RUNS)
    logs = np.log(losses(RUNS, **options))
    others = [np.median(np.delete(logs, place, axis=2), axis=2) for place in range(logs.shape[2])]
    rule = {1: math.log1p(0.1), 5: math.log1p(0.1), 20: math.log1p(0.1)}
    assert alarms(logs - np.stack(others, axis=2), rule) <= most


def test_the_probability_of_a_false_alarm_is_not_more_than_is_spent(monkeypatch: Any) -> None:
    """Normal gaps, no least effect, and a fifth of the runs allowed to have one."""
    monkeypatch.setattr(gap_test, "FALSE_ALARMS", 0.2 * RUNS)
    gaps = np.random.default_rng(1).normal(size=(60, RUNS, 1))
    assert 0 < alarms(gaps, {1: 0.0, 5: 0.0}) <= 0.2 * RUNS


def looks(values: np.ndarray) -> list[tuple[int, int]]:
    """Steps and ranks at which the rule finds something in one run, [steps, replicas]."""
    rule = RankDiffers("rank_loss_differs", "loss", lambda view: view.losses, at_once=0.1, lasting=0.1)
    views = (StepView(step=step + 1, time=0.0, losses=row) for step, row in enumerate(values))
    return [(view.step, told[0].rank) for view in views if (told := rule.look(view, is_active=False))]


@pytest.mark.parametrize(("factor", "within"), [(2.0, 1), (1.3, 20)])
def test_a_rank_with_another_loss_is_found(factor: float, within: int) -> None:
    for seed in range(5):
        values = losses(1, samples=64, seed=seed)[:, 0]
        values[150:, 1] *= factor
        step, rank = looks(values)[0]
        assert 151 <= step < 151 + within and rank == 1


def test_a_rank_that_differs_from_the_beginning_is_found() -> None:
    values = losses(1, samples=64)[:, 0]
    values[:, 1] *= 1.5
    assert looks(values)


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 8])
def test_the_medians_of_others_are_those_of_numpy(rows: int) -> None:
    """Also where rows are equal."""
    random = np.random.default_rng(rows)
    for values in (random.normal(size=(rows, 6)), random.integers(0, 3, size=(rows, 6)).astype(float)):
        expected = [np.median(np.delete(values, row, axis=0), axis=0) for row in range(rows)]
        np.testing.assert_array_equal(gap_test.medians_of_others(values), expected)
