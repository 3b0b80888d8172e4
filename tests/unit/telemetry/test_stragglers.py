"""Who is called a straggler, and what each rank's own work is beside the others': closed forms and made-up noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.core.mesh import Mesh
from workbench.telemetry.stragglers import against_others, find_straggler, mean_by_phase

STEPS, RUNS = 50, 300


def own_time(table: np.ndarray) -> pd.DataFrame:
    """(step, rank) milliseconds as a frame with the phase "forward"."""
    steps, ranks = table.shape
    index = pd.MultiIndex.from_product([range(1, steps + 1), range(ranks)], names=["step", "rank"])
    return pd.DataFrame({"forward": table.ravel()}, index=index)


def named(table: np.ndarray, step_ms: float = 100.0) -> int | None:
    ranks = table.shape[1]
    found = find_straggler(own_time(table), None, pd.Series([step_ms] * ranks), pd.Series([0.0] * ranks))
    return None if found is None else found.rank


@pytest.mark.parametrize("ranks", [2, 4, 64])
def test_noise_names_nobody(ranks: int) -> None:
    """Each rank's own time swings by 30 %, as on a busy machine."""
    random = np.random.default_rng(0)
    wrong = sum(named(80 * random.lognormal(0, 0.3, (STEPS, ranks))) is not None for _ in range(RUNS))
    assert wrong <= 0.01 * RUNS


@pytest.mark.parametrize("ranks", [2, 4, 64])
def test_a_rank_that_is_a_fifth_slower_is_named_in_the_same_noise(ranks: int) -> None:
    random = np.random.default_rng(0)
    slow = np.where(np.arange(ranks) == 1, 1.3, 1.0)
    right = sum(named(80 * slow * random.lognormal(0, 0.15, (STEPS, ranks))) == 1 for _ in range(RUNS))
    assert right >= 0.95 * RUNS


def test_a_difference_below_the_threshold_names_nobody_however_certain_it_is() -> None:
    table = np.tile([80.0, 84.0], (STEPS, 1))
    assert named(table, step_ms=100.0) is None and named(table, step_ms=60.0) == 1


def test_two_ranks_that_are_equally_slow_are_not_told_apart() -> None:
    table = 80 * np.random.default_rng(0).lognormal(0, 0.05, (STEPS, 4))
    table[:, 2:] += 40
    assert named(table) is None


def test_work_beside_the_others_is_numpys_median_without_the_rank() -> None:
    random = np.random.default_rng(0)
    for ranks in (2, 3, 4, 5, 9):
        table = random.random((ranks, 7))
        table[random.random(table.shape) < 0.2] = np.nan
        found = against_others(table, Mesh(dp=ranks))
        for rank in range(ranks):
            for place in range(7):
                others = np.delete(table[:, place], rank)
                others = others[~np.isnan(others)]
                if others.size and not np.isnan(table[rank, place]):
                    assert found[rank, place] == pytest.approx(table[rank, place] / np.median(others) - 1)


def test_a_mean_is_over_the_steps_that_the_rank_has() -> None:
    """Rank 0 has phases of four steps, rank 1 of two."""
    rank = np.array([0, 0, 0, 0, 1, 1])
    phases = {
        "step": np.array([1, 2, 3, 4, 2, 4]),
        "rank": rank,
        "phase": np.array(["forward"] * 6, dtype=object),
        "duration_ms": np.array([10.0, 10.0, 10.0, 10.0, 12.0, 14.0]),
    }
    names, table = mean_by_phase(phases, 3)
    assert names == ["forward"] and table[:, 0].tolist() == [10.0, 13.0, 0.0]
