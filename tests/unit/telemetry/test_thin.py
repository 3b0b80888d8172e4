"""Thinning against the plain definition, column by column."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.telemetry.thin import groups_to_keep, minmax_indices


def column_of(x: np.ndarray, pixels: int) -> np.ndarray:
    width = (x[-1] - x[0]) / pixels
    return np.minimum(((x - x[0]) / width).astype(int), pixels - 1)


values = st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf))


@given(st.lists(values, min_size=1, max_size=400), st.integers(1, 40), st.integers(0, 10))
def test_each_pixel_keeps_its_lowest_and_highest(ys: list[float], pixels: int, seed: int) -> None:
    y = np.array(ys)
    x = np.cumsum(np.random.default_rng(seed).integers(1, 5, y.size)).astype(float)
    kept = minmax_indices(x, y, pixels)
    assert (np.diff(kept) > 0).all() and kept[0] == 0 and kept[-1] == y.size - 1
    assert kept.size <= 3 * pixels + 2
    if y.size <= 2 * pixels + 2:
        assert kept.size == y.size
        return
    column = column_of(x, pixels) if x[-1] > x[0] else np.zeros(y.size, int)
    for pixel in set(column.tolist()):
        of_pixel, of_kept = y[column == pixel], y[kept[column[kept] == pixel]]
        finite, left = of_pixel[np.isfinite(of_pixel)], of_kept[np.isfinite(of_kept)]
        if finite.size:
            assert (left.min(), left.max()) == (finite.min(), finite.max())
        assert finite.size == of_pixel.size or left.size < of_kept.size, "a gap stays a gap"


def test_one_spike_in_a_million_stays() -> None:
    x, y = np.arange(10**6), np.zeros(10**6)
    y[123_456] = 7.0
    kept = minmax_indices(x, y, 500)
    assert kept[y[kept] == 7.0].tolist() == [123_456]
    assert kept.size <= 1502


def test_no_points_one_place_and_a_wrong_number() -> None:
    assert minmax_indices(np.empty(0), np.empty(0), 3).size == 0
    assert set(minmax_indices(np.zeros(100), np.arange(100.0), 4)) == {0, 99}
    with pytest.raises(ValueError, match="not 0"):
        minmax_indices(np.arange(3), np.arange(3), 0)


def test_whole_groups_stay_and_with_them_the_extremes() -> None:
    group = np.repeat(np.arange(1000), 3)
    loss = np.random.default_rng(1).normal(size=group.size)
    loss[[601, 1502]] = 50.0, -50.0
    loss[10] = np.nan
    kept = groups_to_keep(group, [loss])
    assert {601 // 3, 1502 // 3} <= set(group[kept])
    assert np.bincount(group[kept], minlength=1000).tolist() == [3 * (number in group[kept]) for number in range(1000)]
    assert 0.3 < kept.mean() <= 0.5
    assert groups_to_keep(group, [])[::3].tolist() == [number % 2 == 0 for number in range(1000)]
