"""Order and randomness of data: the same for every number of replicas, whatever else draws random numbers."""

from __future__ import annotations

import functools
import gc
import operator
import random
from collections.abc import Iterator
from itertools import islice
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler, SubsetRandomSampler, WeightedRandomSampler

from workbench.engine.data.dataset_source import DatasetSource
from workbench.engine.data.generators import DataGenerators
from workbench.engine.data.loader_source import LoaderSource

LENGTH = 12


class Augmented:
    """Each sample: its number and what was drawn for it from the three generators."""

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, torch.rand(()).item(), random.random(), np.random.rand()], dtype=torch.float64)


class Shuffled(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        order = list(range(LENGTH))
        random.shuffle(order)
        return (torch.tensor([float(index)]) for index in order)


class OwnSampler(Sampler):
    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(LENGTH).tolist())

    def __len__(self) -> int:
        return LENGTH


class OwnBatches(Sampler):
    def __iter__(self) -> Iterator[list[int]]:
        return iter(torch.randperm(LENGTH).view(-1, 4).tolist())


def loader(**options: Any) -> LoaderSource:
    size = {} if "batch_sampler" in options else {"batch_size": 4}
    return LoaderSource(DataLoader(Augmented(), **size, **options), seed=3)


SOURCES = {
    "dataset": lambda: DatasetSource(Augmented(), 4, seed=3, shuffle=True),
    "iterable dataset": lambda: DatasetSource(Shuffled(), 4, seed=3, shuffle=False),
    "loader of an iterable": lambda: LoaderSource(DataLoader(Shuffled(), batch_size=4), seed=3),
    "shuffling loader": lambda: loader(shuffle=True),
    "weighted": lambda: loader(sampler=WeightedRandomSampler([1.0] * LENGTH, LENGTH, replacement=False)),
    "subset": lambda: loader(sampler=SubsetRandomSampler(range(LENGTH))),
    "own sampler": lambda: loader(sampler=OwnSampler()),
    "batch sampler": lambda: loader(batch_sampler=OwnBatches()),
    "own generator": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(8)),
    "workers": lambda: loader(shuffle=True, num_workers=2, persistent_workers=True),
}


def read(source: Any, dp: int, dp_size: int, start: int, number: int) -> list[torch.Tensor]:
    """Shares of one replica; the rest of training draws as many random numbers as its rank says, and other ones."""
    torch.manual_seed(100 + dp)
    found = []
    for batch in islice(source.batches(dp, dp_size, start), number):
        found.append(batch)
        torch.rand(dp + 1)
        random.random()
        np.random.rand(dp)
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_batches_are_those_of_one_process_and_of_a_resumed_run(name: str) -> None:
    alone = read(SOURCES[name](), 0, 1, 0, 6)
    first, second = (read(SOURCES[name](), dp, 2, 0, 6) for dp in range(2))
    for whole, *shares in zip(alone, first, second, strict=True):
        assert torch.equal(whole, torch.cat(shares))
    for epoch in alone[:3], alone[3:]:
        numbers = torch.cat(epoch)
        assert sorted(numbers[:, 0].tolist()) == list(range(LENGTH)), "each sample once"
        drawn = numbers[:, 1:].flatten().tolist()
        assert len(set(drawn)) == len(drawn), "augmentation is another for each sample"
    if name != "workers":
        assert torch.equal(torch.stack(read(SOURCES[name](), 0, 1, 4, 2)), torch.stack(alone[4:]))


def test_the_other_generators_go_on_as_if_nothing_was_read() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = torch.rand(2), random.random(), np.random.rand()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    next(loader(sampler=OwnSampler()).batches(0, 1))
    assert torch.equal(torch.rand(2), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]


def test_streams_differ_by_seed_and_position() -> None:
    found = []
    for seed, position in [(1, (0,)), (1, (1,)), (2, (0,)), (1, (0, 1)), (1, (1, 0))]:
        with DataGenerators(seed).in_use(*position):
            found += [torch.rand(()).item(), random.random(), np.random.rand()]
    assert len(set(found)) == 15


class Threads:
    """An exchange of two ranks that are threads."""

    ranks = 2

    def __init__(self, rank: int, barrier: Barrier, told: list[Any]) -> None:
        self.rank, self._barrier, self._told = rank, barrier, told

    def gathered(self, value: Any) -> list[Any]:
        self._told[self.rank] = value
        self._barrier.wait(300)
        found = list(self._told)
        self._barrier.wait(300)
        return found


@pytest.mark.parametrize("kind", ["sampler", "batch_sampler"])
def test_rank_0_draws_the_order_of_an_unseeded_sampler(kind: str) -> None:
    class Unseeded(Sampler):
        def __init__(self, seed: int) -> None:
            self._own = np.random.default_rng(seed)

        def __iter__(self) -> Iterator[Any]:
            order = self._own.permutation(LENGTH)
            return iter(order.tolist() if kind == "sampler" else order.reshape(-1, 4).tolist())

        def __len__(self) -> int:
            return LENGTH

    barrier, told, found = Barrier(2), [None, None], {}

    def rank(number: int) -> None:
        size = {"batch_size": 4} if kind == "sampler" else {}
        source = LoaderSource(DataLoader(list(range(LENGTH)), **size, **{kind: Unseeded(number)}), seed=3)
        source.share_with(Threads(number, barrier, told))
        found[number] = [batch.tolist() for batch in islice(source.batches(number, 2), 6)]

    threads = [Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    for first in (0, 3):
        epoch = functools.reduce(operator.iadd, found[0][first : first + 3] + found[1][first : first + 3], [])
        assert sorted(epoch) == list(range(LENGTH))


def test_workers_of_a_loader_in_a_cycle_are_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the garbage collector finds their loader, the queues through which they are told are still open."""
    loader = DataLoader(range(4), num_workers=1, persistent_workers=True)
    batches = DataGenerators(1).read(loader, 0)
    assert int(next(batches)) == 0
    kind, open_queues = type(loader._iterator), []
    shut_down = kind._shutdown_workers

    def shut_down_workers(iterator: Any) -> None:
        open_queues.extend(queue._close.still_active() for queue in iterator._index_queues)
        shut_down(iterator)

    monkeypatch.setattr(kind, "_shutdown_workers", shut_down_workers)
    cycle: list[Any] = [loader, batches]
    cycle.append(cycle)
    del loader, batches, cycle
    gc.collect()
    assert open_queues == [True]
