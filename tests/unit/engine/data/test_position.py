"""Going on at a position: the same batches as a run from the beginning reaches there, and what they are made of."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from workbench.engine.data.dataset_source import DatasetSource
from workbench.engine.data.loader_source import LoaderSource
from workbench.errors import ConfigError

LENGTH = 22


class Counted:
    """22 samples (their numbers), and how many were read."""

    def __init__(self) -> None:
        self.read = 0

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        self.read += 1
        return torch.tensor(index)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(LENGTH))


def own_generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


SOURCES = {
    "in order": lambda: DatasetSource(Counted(), 8, seed=1, shuffle=False),
    "shuffled": lambda: DatasetSource(Counted(), 8, seed=1, shuffle=True),
    "iterable": lambda: DatasetSource(Stream(), 8, seed=1, shuffle=False),
    "loader": lambda: LoaderSource(DataLoader(Counted(), batch_size=8), seed=1),
    "shuffling loader": lambda: LoaderSource(DataLoader(Counted(), batch_size=8, shuffle=True), seed=1),
    "loader's generator": lambda: LoaderSource(
        DataLoader(Counted(), batch_size=8, shuffle=True, generator=own_generator()), seed=1
    ),
    "loader of a stream": lambda: LoaderSource(DataLoader(Stream(), batch_size=8), seed=1),
    "drop_last": lambda: LoaderSource(DataLoader(Counted(), batch_size=8, drop_last=True), seed=1),
}


def numbers(source, dp: int, dp_size: int, start: int, count: int) -> list[list[int]]:
    return [batch.tolist() for batch in islice(source.batches(dp, dp_size, start), count)]


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("name", SOURCES)
def test_a_position_is_reached_as_from_the_beginning(name: str, start: int) -> None:
    for dp in range(2):
        expected = numbers(SOURCES[name](), dp, 2, 0, start + 5)[start:]
        assert numbers(SOURCES[name](), dp, 2, start, 5) == expected


@pytest.mark.parametrize("name", SOURCES)
def test_indices_are_those_of_the_batch(name: str) -> None:
    source = SOURCES[name]()
    for dp in range(2):
        batches = source.batches(dp, 2)
        for number in range(6):
            found = source.indices(number, dp, 2)
            # asked while an epoch is being read, which must go on as it was
            assert next(batches).tolist() == numbers(SOURCES[name](), dp, 2, 0, 6)[number]
            expected = None if "stream" in name or name in ("iterable", "loader's generator") else found
            assert found == expected
            if found is not None:
                assert found == numbers(SOURCES[name](), dp, 2, 0, 6)[number]


def test_a_distributed_sampler() -> None:
    def source(dp: int) -> LoaderSource:
        sampler = DistributedSampler(Counted(), num_replicas=2, rank=dp, shuffle=True, seed=4)
        return LoaderSource(DataLoader(Counted(), batch_size=4, sampler=sampler), seed=1)

    for dp in range(2):
        expected = numbers(source(dp), dp, 2, 0, 9)
        assert numbers(source(dp), dp, 2, 5, 4) == expected[5:]
        assert [source(dp).indices(number, dp, 2) for number in range(9)] == expected


def test_what_is_skipped_is_not_read() -> None:
    dataset = Counted()
    next(DatasetSource(dataset, 8, seed=1, shuffle=True).batches(0, 1, start=1001))
    assert dataset.read == 8
    next(LoaderSource(DataLoader(dataset, batch_size=8, shuffle=True), seed=1).batches(0, 1, start=1001))
    assert dataset.read == 8 + 22, "two batches of that epoch to skip, and the one asked for, which is the last"


def test_skipping_happens_at_once_and_not_in_the_middle_of_training() -> None:
    dataset = Counted()
    LoaderSource(DataLoader(dataset, batch_size=8), seed=1).batches(0, 1, start=1)
    assert dataset.read == 8


@pytest.mark.parametrize("shuffle", [False, True])
def test_another_batch_size_goes_on_at_the_same_sample(shuffle: bool) -> None:
    def read(size: int, count: int, position: dict[str, int] | None = None) -> tuple[list[int], DatasetSource]:
        source = DatasetSource(list(range(22)), size, seed=3, shuffle=shuffle)
        start = 0
        if position is not None:
            source.begin_at(position, start := 4)
        return [int(n) for batch in islice(source.batches(0, 1, start), count) for n in batch], source

    epoch, _ = read(22, 2)
    first, source = read(4, 4)
    assert source.position(4) == {"epoch": 0, "samples": 16, "batch_size": 4, "length": 22}
    after, resumed = read(2, 5, source.position(4))
    assert first + after == [*epoch[:22], *epoch[22:26]]
    assert resumed.position(9) == {"epoch": 1, "samples": 4, "batch_size": 2, "length": 22}
    assert read(8, 2, source.position(4))[0] == epoch[22:38], (
        "6 samples are no batch of 8: dropped, as at any epoch's end"
    )
    assert resumed.indices(4, 1, 2) == [epoch[17]]
    assert read(3, 3, source.position(4))[0] == [*epoch[16:22], *epoch[22:25]]


def test_a_data_set_of_another_length_is_told() -> None:
    def source(length: int) -> DatasetSource:
        return DatasetSource(list(range(length)), 4, seed=3, shuffle=True)

    position = source(22).position(4)
    assert source(22).begin_at(position, 4) == ""
    assert source(30).begin_at(position, 4).startswith("the data set has 30 samples, and had 22 when the checkpoint")
    del position["length"]
    assert source(30).begin_at(position, 4) == "", "a checkpoint of an earlier version"


ITERABLE = r"an iterable dataset resumes only with .*: use --batch-size 4, or a dataset with len"
REPLACED = r"a dataset in place of a dataloader resumes only with .*: use --batch-size 4$"
LOADER = r"a dataloader resumes only with .* which is 4 over all ranks, not 8. Give it batch_size=4"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (lambda size: DatasetSource(Stream(), size, seed=0, shuffle=False), None, ITERABLE),
        (lambda size: LoaderSource(DataLoader(Counted(), batch_size=size)), None, LOADER),
        (lambda size: LoaderSource(DataLoader(Stream(), batch_size=size)), None, LOADER),
        (
            lambda size: LoaderSource(DataLoader(Counted(), batch_size=size)),
            lambda size: DatasetSource(Counted(), size, seed=0, shuffle=False),
            REPLACED,
        ),
    ],
)
def test_what_counts_batches_goes_on_with_its_batch_size_only(before, after, message: str) -> None:
    position = before(4).position(2)
    (after or before)(4).begin_at(position, 2)
    with pytest.raises(ConfigError, match=message):
        (after or before)(8).begin_at(position, 2)


def test_a_sampler_of_each_replica_counts_all_of_them() -> None:
    def source(size: int, replicas: int) -> LoaderSource:
        sampler = DistributedSampler(Counted(), num_replicas=replicas, rank=0)
        return LoaderSource(DataLoader(Counted(), batch_size=size, sampler=sampler))

    position = source(2, 2).position(3)
    source(4, 1).begin_at(position, 3)
    with pytest.raises(ConfigError, match="is 4 over all ranks, not 8"):
        source(4, 2).begin_at(position, 3)


def test_a_loader_of_unknown_batch_size_goes_on() -> None:
    unknown = LoaderSource([torch.ones(3)])
    position = unknown.position(2)
    assert position["batch_size"] is None
    for source in (unknown, LoaderSource(DataLoader(Counted(), batch_size=8)), SOURCES["in order"]()):
        source.begin_at(position, 2)  # does not raise


def test_what_can_be_read_once_says_so_and_does_not_go_back() -> None:
    for source in (
        DatasetSource((n for n in range(22)), 4, seed=0, shuffle=False),
        LoaderSource(iter([torch.ones(3)])),
        LoaderSource(map(torch.ones, range(1, 5))),
    ):
        assert "which can be read once: it has to last for all steps" in source.remarks()["read_once"]
        with pytest.raises(ConfigError, match="cannot go back"):
            source.check_repeatable()
    for make in SOURCES.values():
        assert make().remarks() == {}
        make().check_repeatable()
