"""Sources of batches against a plain loop: same samples, same order, whatever the number of replicas."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections import UserDict, namedtuple
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from workbench.engine.base.batch import StandIn, contents
from workbench.engine.data.batches import samples_in, split
from workbench.engine.data.dataset_source import DatasetSource
from workbench.engine.data.loader_source import LoaderSource
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
    expected = [list(range(8)), list(range(8, 16)), list(range(16, 22))] * 2
    assert put_together(source, dp_size, 6) == expected, "also the incomplete last batch"


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_shuffling_loader_gives_all_replicas_one_order(own_generator: bool) -> None:
    generator = torch.Generator().manual_seed(3) if own_generator else None
    source = LoaderSource(DataLoader(SAMPLES, batch_size=8, shuffle=True, generator=generator))
    seen = []
    for dp in range(2):
        torch.manual_seed(dp)  # ranks whose global generators have drifted apart
        seen.append([batch["y"].tolist() for batch in islice(source.batches(dp, 2), 6)])
    together = [first + second for first, second in zip(*seen, strict=True)]
    for epoch in together[:3], together[3:]:
        assert sorted(functools.reduce(operator.iadd, epoch, [])) == list(range(22)), "each sample once"
    assert together[:3] != together[3:], "another order in the next epoch"


def test_a_distributed_sampler_is_taken_as_it_is() -> None:
    def loader(rank: int) -> DataLoader:
        sampler = DistributedSampler(SAMPLES, num_replicas=2, rank=rank, shuffle=True, seed=4)
        return DataLoader(SAMPLES, batch_size=4, sampler=sampler)

    got = [batch["y"].tolist() for batch in islice(LoaderSource(loader(1)).batches(1, 2), 4)]
    plain = loader(1)
    expected = []
    for epoch in range(2):
        plain.sampler.set_epoch(epoch)
        expected += [batch["y"].tolist() for batch in plain]
    assert got == expected[:4]
    with pytest.raises(ConfigError, match="replica 1 of 2, but this rank is data-parallel replica 0 of 1"):
        LoaderSource(loader(1)).batches(0, 1)


def test_loaders_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be iterated"):
        LoaderSource(3)
    with pytest.raises(ConfigError, match="a batch of 6 samples cannot be split into 4 equal parts, as pipeline"):
        next(LoaderSource(DataLoader(SAMPLES, batch_size=6), equal_parts=4).batches(0, 1))
    with pytest.raises(ConfigError, match="gave no samples"):
        next(LoaderSource(DataLoader(SAMPLES[:3], batch_size=8, drop_last=True)).batches(0, 1))


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
    second = contents(split(batch, 2)[1])
    assert second["names"] == ["c", "d"]
    assert (second["scale"], second["pair"]) == (2.0, (1, 2))


def test_split_in_one_is_the_batch_itself() -> None:
    assert split({"x": X}, 1)[0]["x"] is X


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"a": 1}, "contains no tensor"),
        ((X, torch.zeros(3)), "dim 0 of each"),
        ({"a": torch.tensor(1.0)}, "contains no tensor"),
    ],
)
def test_batches_without_samples_are_refused(batch, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        samples_in(batch)


def test_a_tensor_dataset_gives_pairs() -> None:
    source = DatasetSource(TensorDataset(X, Y), 4, seed=0, shuffle=False)
    x, y = next(source.batches(1, 2))
    assert torch.equal(x, X[2:])
    assert torch.equal(y, Y[2:])


@dataclasses.dataclass(frozen=True)
class Named:
    x: torch.Tensor
    y: np.ndarray


class Plain:
    def __init__(self) -> None:
        self.x, self.note = X, "kept"


RAGGED = [torch.arange(length) for length in (1, 2, 3, 4)]


def test_every_container_keeps_its_type_and_every_leaf_is_cut() -> None:
    batch = UserDict(a=Named(X, Y.numpy()), b=Plain(), ragged=RAGGED, deep={"z": (X, Y)}, one=torch.tensor(2.0))
    first, second, third = (contents(part) for part in split(batch, 3))
    assert [type(first), type(first["a"]), type(first["b"])] == [UserDict, Named, Plain]
    for part, rows in ((first, slice(0, 1)), (second, slice(1, 2)), (third, slice(2, 4))):
        assert torch.equal(part["a"].x, X[rows])
        assert part["a"].y.tolist() == Y[rows].tolist()
        assert torch.equal(part["b"].x, X[rows])
        assert part["b"].note == "kept"
        assert [len(entry) for entry in part["ragged"]] == [1, 2, 3, 4][rows]
        assert torch.equal(part["deep"]["z"][1], Y[rows])
        assert float(part["one"]) == 2.0
    assert torch.equal(batch["b"].x, X), "the batch itself is unchanged"


def test_what_a_tokenizer_returns_keeps_its_attributes() -> None:
    from transformers import BatchEncoding

    batch = BatchEncoding({"input_ids": X, "labels": Y, "texts": list("abcd")})
    for part, rows in zip(split(batch, 2), (slice(0, 2), slice(2, 4)), strict=True):
        assert type(contents(part)) is BatchEncoding
        assert torch.equal(contents(part).input_ids, X[rows])
        assert torch.equal(contents(part)["labels"], Y[rows])
        assert contents(part).texts == list("abcd")[rows]


@pytest.mark.parametrize("samples", range(1, 9))
@pytest.mark.parametrize("parts", range(1, 5))
def test_parts_are_nearly_equal_and_an_empty_one_is_a_stand_in(samples: int, parts: int) -> None:
    batch = {"x": torch.arange(samples), "names": [str(index) for index in range(samples)]}
    found = split(batch, parts)
    sizes = [samples_in(part) for part in found]
    assert sum(sizes) == samples
    assert max(sizes) - min(sizes) <= 1
    kept = [part for part in found if not isinstance(part, StandIn)]
    assert torch.cat([contents(part)["x"] for part in kept]).tolist() == list(range(samples))
    assert [contents(part)["x"].tolist() for part in found if isinstance(part, StandIn)] == [[0]] * sizes.count(0)
    again = [smaller for part in kept for smaller in split(part, 2) if samples_in(smaller)]
    assert functools.reduce(operator.iadd, (contents(part)["names"] for part in again), []) == batch["names"]


def test_a_list_of_samples_is_known_by_the_size_that_the_loader_has() -> None:
    samples = [torch.zeros(3), torch.ones(3)]
    assert next(contents(part) for part in split(samples, 2, expected=2))[0].tolist() == [0, 0, 0]
    assert [len(part[0]) for part in split(samples, 3)] == [1, 1, 1], "otherwise a pair of tensors"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.nn.utils.rnn.pack_sequence([torch.zeros(3), torch.zeros(2)]), "PackedSequence"),
        (torch.eye(4).to_sparse(), "sparse tensor"),
        (set("abcd"), r"batch\['value'\] is a set"),
    ],
)
def test_what_cannot_be_cut_is_named(value, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        split({"x": X, "value": value}, 2)
