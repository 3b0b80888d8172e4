"""Sources of batches against a plain loop: same samples, same order, whatever the number of replicas."""

from __future__ import annotations

from collections import namedtuple
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from workbench.engine.data.batches import samples_in, split
from workbench.engine.data.sources import DatasetSource, LoaderSource
from workbench.errors import ConfigError

SAMPLES = [{"x": torch.tensor([float(i), -float(i)]), "y": torch.tensor(i)} for i in range(22)]


def put_together(source, dp_size: int, batches: int) -> list[list[int]]:
    """Sample numbers of the first global batches, from the shares of all replicas."""
    shares = [list(islice(source.batches(dp, dp_size), batches)) for dp in range(dp_size)]
    return [[int(n) for share in shares for n in share[step]["y"]] for step in range(batches)]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(SAMPLES)


@pytest.mark.parametrize("dp_size", [1, 2, 4])
@pytest.mark.parametrize("dataset", [SAMPLES, Stream()], ids=["map-style", "iterable"])
def test_order_is_the_dataset_s_and_the_incomplete_batch_is_dropped(dataset, dp_size: int) -> None:
    source = DatasetSource(dataset, 8, seed=1, shuffle=False)
    expected = [list(range(8)), list(range(8, 16))] * 2
    assert put_together(source, dp_size, 4) == expected
    assert put_together(source, dp_size, 4) == expected, "the same on every call"


@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_shuffle_is_a_permutation_from_seed_and_epoch(dp_size: int) -> None:
    source = DatasetSource(SAMPLES, 8, seed=5, shuffle=True)
    expected = []
    for epoch in range(2):
        order = torch.randperm(22, generator=torch.Generator().manual_seed(5 + epoch)).tolist()
        expected += [order[:8], order[8:16]]
    assert put_together(source, dp_size, 4) == expected


def test_shuffling_leaves_torch_s_generator_alone() -> None:
    before = torch.get_rng_state()
    next(DatasetSource(SAMPLES, 8, seed=5, shuffle=True).batches(0, 2))
    assert torch.equal(before, torch.get_rng_state())


def test_a_replica_fetches_only_its_share_and_uses_the_collate_function() -> None:
    fetched = []

    class Counting:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> int:
            fetched.append(index)
            return index

    source = DatasetSource(Counting(), 4, seed=0, shuffle=False, collate_fn=lambda items: torch.tensor(items) * 10)
    assert next(source.batches(1, 2)).tolist() == [20, 30]
    assert fetched == [2, 3]


@pytest.mark.parametrize(
    ("dataset", "shuffle", "words"),
    [
        ([], False, "is empty"),
        (SAMPLES[:3], False, "has 3 samples, fewer than one global batch of 8: use --batch-size 3"),
        (7, False, "is a int"),
        (Stream(), True, "--shuffle needs"),
    ],
)
def test_datasets_that_cannot_work_are_refused_at_birth(dataset, shuffle: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DatasetSource(dataset, 8, seed=0, shuffle=shuffle)


@pytest.mark.parametrize(
    ("samples", "taken", "words"),
    [(0, 1, "gave no sample"), (3, 1, "only 3 samples, fewer than one batch of 8"), (8, 2, "ended after 1 epoch and")],
)
def test_an_iterable_that_ends_says_so(samples: int, taken: int, words: str) -> None:
    source = DatasetSource((sample for sample in SAMPLES[:samples]), 8, seed=0, shuffle=False)
    with pytest.raises(ConfigError, match=words):
        list(islice(source.batches(0, 1), taken))


def test_a_batch_that_replicas_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--batch-size 8 cannot be divided among 3 .* use 9"):
        DatasetSource(SAMPLES, 8, seed=0, shuffle=False).batches(0, 3)


@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_a_loader_s_batch_is_the_global_batch(dp_size: int) -> None:
    source = LoaderSource(DataLoader(SAMPLES, batch_size=8))
    expected = [list(range(8)), list(range(8, 16))] * 2
    assert put_together(source, dp_size, 4) == expected


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_shuffling_loader_gives_all_replicas_one_order(own_generator: bool) -> None:
    generator = torch.Generator().manual_seed(3) if own_generator else None
    source = LoaderSource(DataLoader(SAMPLES, batch_size=8, shuffle=True, generator=generator))
    seen = []
    for dp in range(2):
        torch.manual_seed(dp)  # ranks whose global generators have drifted apart
        seen.append([batch["y"].tolist() for batch in islice(source.batches(dp, 2), 4)])
    together = [first + second for first, second in zip(*seen, strict=True)]
    assert all(len(set(batch)) == 8 for batch in together)
    assert len(set(together[0] + together[1])) == 16
    assert together[:2] != together[2:], "another order in the next epoch"


def test_a_distributed_sampler_is_taken_as_it_is() -> None:
    def loader(rank: int) -> DataLoader:
        sampler = DistributedSampler(SAMPLES, num_replicas=2, rank=rank, shuffle=True, seed=4)
        return DataLoader(SAMPLES, batch_size=4, sampler=sampler)

    got = [batch["y"].tolist() for batch in islice(LoaderSource(loader(1)).batches(1, 2), 4)]
    plain = loader(1)
    expected = []
    for epoch in range(2):
        plain.sampler.set_epoch(epoch)
        expected += [batch["y"].tolist() for batch in plain if len(batch["y"]) == 4]
    assert got == expected[:4]
    with pytest.raises(ConfigError, match="replica 1 of 2, but this rank is data-parallel replica 0 of 1"):
        LoaderSource(loader(1)).batches(0, 1)


def test_loaders_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be iterated"):
        LoaderSource(3)
    with pytest.raises(ConfigError, match="a batch of 6 samples cannot be split into 4"):
        next(LoaderSource(DataLoader(SAMPLES, batch_size=6)).batches(0, 4))
    with pytest.raises(ConfigError, match="only 3 samples"):
        next(LoaderSource(DataLoader(SAMPLES[:3], batch_size=8)).batches(0, 1))


Pair = namedtuple("Pair", ["x", "y"])
X, Y = torch.arange(12).view(4, 3), torch.arange(4)


@pytest.mark.parametrize("batch", [X, {"x": X, "y": Y}, (X, Y), [X, {"y": Y}], Pair(X, Y)], ids=type)
def test_split_cuts_every_tensor_and_keeps_the_kind(batch) -> None:
    pieces = split(batch, 2)
    assert [samples_in(piece) for piece in pieces] == [2, 2]
    assert type(pieces[0]) is type(batch)
    flat = torch.utils._pytree.tree_leaves
    for whole, first, second in zip(flat(batch), flat(pieces[0]), flat(pieces[1]), strict=True):
        assert torch.equal(torch.cat([first, second]), whole)


def test_split_cuts_texts_and_keeps_constants() -> None:
    batch = {"x": X, "names": ["a", "b", "c", "d"], "scale": 2.0, "pair": (1, 2)}
    second = split(batch, 2)[1]
    assert second["names"] == ["c", "d"]
    assert (second["scale"], second["pair"]) == (2.0, (1, 2))


def test_split_in_one_is_the_batch_itself() -> None:
    assert split({"x": X}, 1)[0]["x"] is X


@pytest.mark.parametrize(
    ("batch", "words"),
    [({"a": 1}, "holds no tensor"), ((X, torch.zeros(3)), "dim 0 of each"), ({"a": torch.tensor(1.0)}, "dim 0")],
)
def test_batches_without_samples_are_refused(batch, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        samples_in(batch)


def test_a_tensor_dataset_gives_pairs() -> None:
    source = DatasetSource(TensorDataset(X, Y), 4, seed=0, shuffle=False)
    x, y = next(source.batches(1, 2))
    assert torch.equal(x, X[2:])
    assert torch.equal(y, Y[2:])
