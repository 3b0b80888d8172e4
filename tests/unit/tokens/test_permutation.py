"""The order without an array: a bijection, by seed and epoch, evenly spread, at any size."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from workbench.tokens.permutation import InOrder, Permutation


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 17, 64, 65, 1000, 4097])
def test_each_sample_comes_once(size: int) -> None:
    assert sorted(Permutation(size, seed=3)[:]) == list(range(size))


def test_seed_epoch_and_what_is_permuted_decide_it() -> None:
    size = 500
    orders = [Permutation(size, 0), Permutation(size, 1), Permutation(size, 0, 1), Permutation(size, 0, 0, of=1)]
    assert len({tuple(order[:].tolist()) for order in orders}) == len(orders)
    assert (Permutation(size, 1)[:] == orders[1][:]).all()
    assert (Permutation(size, -1)[:] != Permutation(size, 1)[:]).any(), "a seed may be negative"


def test_slices_and_places_agree() -> None:
    order = Permutation(1000, 7)
    whole = order[:]
    assert [order[place] for place in (0, 1, 999, -1)] == [whole[place] for place in (0, 1, 999, -1)]
    for part in (slice(100, 130), slice(990, 2000), slice(None, None, 97), slice(5, 5), slice(None, None, -1)):
        assert (order[part] == whole[part]).all() and len(order[part]) == len(whole[part])
    assert (InOrder(10)[3:20] == range(3, 10)).all() and InOrder(10)[-1] == 9


def test_slices_of_any_length_agree() -> None:
    order = Permutation(100_000, 7)
    whole = order.at(np.arange(100_000))
    for begin, end in ((0, 32), (32, 64), (8190, 8200), (8150, 8190), (50_000, 90_000), (99_990, 100_000), (3, 10)):
        assert (order[begin:end] == whole[begin:end]).all()


def test_places_beyond_the_end() -> None:
    order = Permutation(1000, 7)
    with pytest.raises(IndexError):
        order[1000]
    with pytest.raises(ValueError, match="0 to 2"):
        Permutation(2**62 + 1, 0)


def test_samples_are_spread_evenly() -> None:
    """Where the first tenth of samples goes, and whether neighbours stay together, over many seeds: chi-squared tests
    of fixed seeds, so that they cannot fail by chance."""
    from scipy import stats

    size, seeds = 1000, 200
    places = np.zeros(10)
    steps = np.zeros(10)
    for seed in range(seeds):
        order = Permutation(size, seed).at(np.arange(size))
        places += np.bincount(np.flatnonzero(order < size // 10) * 10 // size, minlength=10)
        steps += np.bincount(np.diff(order) % size * 10 // size, minlength=10)
    assert stats.chisquare(places).pvalue > 1e-3
    assert stats.chisquare(steps).pvalue > 1e-3


def test_billions_of_samples_need_no_array() -> None:
    tracemalloc.start()
    order = Permutation(10**12, 5)
    part = order[10**11 : 10**11 + 1000]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(part.tolist())) == 1000 and min(part) >= 0 and max(part) < 10**12
    assert np.ptp(part) > 10**11, "they are from everywhere"
    assert peak < 10**6
