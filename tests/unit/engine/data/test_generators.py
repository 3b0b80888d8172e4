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
from workbench.engine.data.own_generators import OwnGenerator, own_generators

LENGTH = 12
#: NumPy's ways to make random bits
BITS = (np.random.PCG64, np.random.Philox, np.random.SFC64, np.random.MT19937)


class Augmented:
    """Each sample: its number and what was drawn for it from the three generators."""

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, torch.rand(()).item(), random.random(), np.random.rand()], dtype=torch.float64)


class OwnNumbers:
    """As ``Augmented``, but drawn from generators of its own: one that the class shares, one that a function of the
    module names, one of the object, and one that is made when it is first needed."""

    shared = np.random.RandomState(4)

    def __init__(self, late: bool = True) -> None:
        self.own = [random.Random(5)]
        self.shared.seed(4)
        own_torch.manual_seed(6)
        self.late = None if late else np.random.default_rng(7)

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        self.late = np.random.default_rng(7) if self.late is None else self.late
        drawn = [
            self.shared.rand(),
            self.own[0].random(),
            torch.rand((), generator=own_torch).item(),
            self.late.random(),
        ]
        return torch.tensor([index, *drawn], dtype=torch.float64)


own_torch = torch.Generator()


class Noisy(IterableDataset):
    """A stream that shuffles and draws while it is read."""

    def __init__(self, own: bool) -> None:
        self._random: Any = random.Random(3) if own else random

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in self._random.sample(range(LENGTH), LENGTH):
            yield torch.tensor([float(index), self._random.random()])


def drawing(samples: list[torch.Tensor]) -> torch.Tensor:
    """A collation that draws, as many numbers as a share has samples."""
    random.random()
    np.random.rand(len(samples))
    return torch.stack(samples)


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
    "own numbers of a dataset": lambda: DatasetSource(OwnNumbers(), 4, seed=3, shuffle=True),
    "own numbers of a loader": lambda: LoaderSource(DataLoader(OwnNumbers(False), batch_size=4, shuffle=True), seed=3),
    "noisy stream": lambda: DatasetSource(Noisy(False), 4, seed=3, shuffle=False, collate_fn=drawing),
    "noisy stream of its own": lambda: DatasetSource(Noisy(True), 4, seed=3, shuffle=False, collate_fn=drawing),
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


class OfReplica(Sampler):
    """A sampler of replicas with an order of its own."""

    def __init__(self, rank: int) -> None:
        self.rank, self.num_replicas, self.own = rank, 2, torch.Generator().manual_seed(9)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(LENGTH, generator=self.own)[self.rank :: 2].tolist())

    def __len__(self) -> int:
        return LENGTH // 2


def of_replica(rank: int, workers: int = 0) -> LoaderSource:
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)  # seeds workers, as PyTorch's notes on reproducibility have it
    data = OwnNumbers(late=False)
    loader = DataLoader(data, batch_size=2, sampler=OfReplica(rank), generator=generator, num_workers=workers)
    return LoaderSource(loader, seed=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_replicas_with_samples_of_their_own_draw_different_numbers_in_one_order(workers: int) -> None:
    found = [torch.cat(list(islice(of_replica(rank, workers).batches(rank, 2), 6))) for rank in range(2)]
    for epoch in zip(found[0].split(6), found[1].split(6), strict=True):
        assert sorted(torch.cat(epoch)[:, 0].tolist()) == list(range(LENGTH))
    drawn = torch.cat(found)[:, 1:].flatten().tolist()
    assert len(set(drawn)) == len(drawn)
    again = torch.cat(list(islice(of_replica(1, workers).batches(1, 2, 4), 2)))
    assert torch.equal(again, found[1][8:]), "a resumed run draws them again"


def test_own_generators_of_a_loader_are_those_of_one_process_and_go_on_beside_it() -> None:
    plain = OwnNumbers(late=False)
    right = torch.stack([plain[index] for _ in range(2) for index in range(LENGTH)])
    data = OwnNumbers(late=False)
    source = LoaderSource(DataLoader(data, batch_size=4), seed=3)
    shares = [source.batches(dp, 2) for dp in range(2)]
    for _ in range(2):  # a rollback reads them again
        found = [torch.cat(list(islice(share, 6))) for share in shares[:1]]
        assert torch.equal(found[0], right.unflatten(0, (6, 4))[:, :2].flatten(0, 1))
        shares = [source.batches(dp, 2) for dp in range(2)]
    assert data.own[0].random() == random.Random(5).random(), "what the loss draws from it is not touched"


@pytest.mark.parametrize("kind", [torch.Generator, random.Random, np.random.RandomState, *BITS])
def test_own_generators_are_kept_and_seeded(kind: Any) -> None:
    generator = np.random.Generator(kind(1)) if kind in BITS else kind()
    own = OwnGenerator(generator)
    draw = (lambda: torch.rand((), generator=generator).item()) if kind is torch.Generator else generator.random
    draw = generator.random_sample if kind is np.random.RandomState else draw
    kept, first = own.states(), draw()
    assert draw() != first
    own.restore(kept)
    assert draw() == first
    own.reseed(0)
    second = draw()
    own.reseed(1)
    assert len({first, second, draw()}) == 3


def test_generators_are_found_where_functions_and_objects_hold_them() -> None:
    outer, default = random.Random(1), random.Random(2)
    data = functools.partial(lambda index, use=default: (outer, use, own_torch), 3)
    stream = (sample for sample in [np.random.default_rng(1)] for _ in range(2))
    next(stream)
    assert {id(each.generator) for each in own_generators([data])} == {id(outer), id(default), id(own_torch)}
    assert len(own_generators(stream)) == 1
    assert own_generators(random.random, np.random.rand, [torch.default_generator, random.SystemRandom()]) == []
    assert [each.generator for each in own_generators(outer, default, without=[[outer]])] == [default]
