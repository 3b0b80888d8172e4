"""An epoch gives every sample once, for any source, number of replicas, and place to go on from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from workbench.engine.base.batch import StandIn
from workbench.engine.data.dataset_source import DatasetSource
from workbench.engine.data.loader_source import LoaderSource
from workbench.engine.loop.epochs import EpochReader
from workbench.errors import ConfigError

SAMPLES = 10


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(SAMPLES))


def generator_loader() -> DataLoader:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(list(range(SAMPLES)), batch_size=4, shuffle=True, generator=generator)


SOURCES: dict[str, Callable[[], Any]] = {
    "dataset": lambda: DatasetSource(list(range(SAMPLES)), 4, seed=1, shuffle=False, keep_last=True),
    "shuffled": lambda: DatasetSource(list(range(SAMPLES)), 4, seed=1, shuffle=True, keep_last=True),
    "stream": lambda: DatasetSource(Stream(), 4, seed=1, shuffle=False, keep_last=True),
    "loader": lambda: LoaderSource(DataLoader(list(range(SAMPLES)), batch_size=4, shuffle=True), seed=1),
    "loader of a stream": lambda: LoaderSource(DataLoader(Stream(), batch_size=4), seed=1),
    "loader's generator": lambda: LoaderSource(generator_loader(), seed=1),
}
COUNTED = ("dataset", "shuffled", "loader")


def numbers(batch: Any) -> list[int]:
    return [] if isinstance(batch, StandIn) else batch.tolist()


def epochs_of(source: Any, dp: int, dp_size: int, count: int) -> list[list[list[int]]]:
    """The batches of each of so many epochs."""
    reader = EpochReader(source, dp, dp_size, exact=True)
    reader.begin(0)
    found: list[list[list[int]]] = [[] for _ in range(count)]
    while reader.done < count:
        found[reader.done].append(numbers(next(reader)))
        reader.look_ahead()
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_every_sample_once_in_an_epoch(name: str) -> None:
    found = epochs_of(SOURCES[name](), 0, 1, 3)
    for epoch in found:
        assert [len(batch) for batch in epoch] == [4, 4, 2]
        assert sorted(chain.from_iterable(epoch)) == list(range(SAMPLES))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("replicas", [2, 4])
def test_shares_are_the_batches_of_one_process(name: str, replicas: int) -> None:
    whole = epochs_of(SOURCES[name](), 0, 1, 2)
    shares = [epochs_of(SOURCES[name](), dp, replicas, 2) for dp in range(replicas)]
    for epoch, batches in enumerate(whole):
        for index, batch in enumerate(batches):
            assert list(chain.from_iterable(share[epoch][index] for share in shares)) == batch


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("exact", [True, False])
def test_it_goes_on_where_it_was(name: str, number: int, exact: bool) -> None:
    """``exact`` or not, the same batches come, and the same epochs are counted."""
    first = EpochReader(SOURCES[name](), 0, 1, exact=exact)
    first.begin(0)
    for _ in range(number):
        next(first)
        first.look_ahead()
    again = EpochReader(SOURCES[name](), 0, 1, exact=True)
    again.begin(number, first.done)
    if not exact and name not in COUNTED:
        assert again.done == max(0, number - 1) // 3  # an end is known when the next batch is asked for
    else:
        assert again.done == first.done == number // 3
    for _ in range(5):
        assert numbers(next(first)) == numbers(next(again))
        first.look_ahead()
        again.look_ahead()
    assert again.done == (number + 5) // 3


@pytest.mark.parametrize("name", SOURCES)
def test_steps_that_are_left(name: str) -> None:
    reader = EpochReader(SOURCES[name](), 0, 1, exact=True)
    reader.begin(0)
    assert reader.steps_through(2) == (6 if name in COUNTED else None)
    for _ in range(4):
        next(reader)
        reader.look_ahead()
    assert reader.steps_through(2) == (2 if name in COUNTED else None)
    assert reader.length == 3
    assert reader.progress == pytest.approx({"loader": 4 / 3}.get(name, 1.4) if name in COUNTED else 1)


def test_another_batch_size_goes_on_at_the_next_sample() -> None:
    source = DatasetSource(list(range(SAMPLES)), 3, seed=1, shuffle=False, keep_last=True)
    source.begin_at({"epoch": 1, "samples": 4, "batch_size": 4}, 4)
    reader = EpochReader(source, 0, 1, exact=True)
    reader.begin(4, 1)
    found = []
    while reader.done < 3:
        found.append((reader.done, numbers(next(reader))))
        reader.look_ahead()
    assert found[:2] == [(1, [4, 5, 6]), (1, [7, 8, 9])]
    assert [len(batch) for _, batch in found[2:]] == [3, 3, 3, 1]
    assert source.batches_through(3) == reader.consumed == 4 + 2 + 4


def test_a_generator_is_not_asked_for_another_epoch() -> None:
    source = DatasetSource((n for n in range(SAMPLES)), 4, seed=1, shuffle=False, keep_last=True)
    assert [len(batch) for batch in epochs_of(source, 0, 1, 1)[0]] == [4, 4, 2]
    reader = EpochReader(source, 0, 1, exact=True)
    reader.begin(0)
    with pytest.raises(ConfigError, match="no samples"):
        next(reader)


def test_the_last_batch_is_dropped_where_steps_are_counted() -> None:
    source = DatasetSource(list(range(SAMPLES)), 4, seed=1, shuffle=False)
    assert epochs_of(source, 0, 1, 2) == [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 2


def test_a_pipeline_needs_equal_parts_of_the_last_batch_too() -> None:
    with pytest.raises(ConfigError, match="the last batch of an epoch has 2 samples"):
        DatasetSource(list(range(SAMPLES)), 4, seed=1, shuffle=False, keep_last=True, equal_parts=4)
    with pytest.raises(ConfigError, match="the last batch of an epoch has 2 samples"):
        epochs_of(DatasetSource(Stream(), 4, seed=1, shuffle=False, keep_last=True, equal_parts=4), 0, 1, 1)


def test_a_source_without_epochs_is_refused_where_they_count() -> None:
    class Endless:
        def batches(self, dp: int, dp_size: int, start: int = 0) -> Iterator[int]:
            yield 1

        def indices(self, number: int, dp: int, dp_size: int) -> None:
            return None

    reader = EpochReader(Endless(), 0, 1, exact=False)
    reader.begin(0)
    assert next(reader) == 1
    assert not reader.look_ahead()
    with pytest.raises(ConfigError, match="Endless has no epochs"):
        EpochReader(Endless(), 0, 1, exact=True)
