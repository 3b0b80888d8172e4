"""What a packed data set gives, against the tokens themselves; resume on other numbers of ranks; mixtures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.tokens.packed import packed
from workbench.core.knobs import Knobs
from workbench.engine.data.dataset_source import DatasetSource
from workbench.errors import ConfigError
from workbench.tokens import packing
from workbench.tokens.dataset import TokenDataset
from workbench.tokens.mixture import BLOCK, TokenMixture
from workbench.tokens.shards import read_index

TEXTS = [f"text {number}: {'x' * (number % 37)}" for number in range(800)]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packing, "_MB", 1000)
    return packed(tmp_path, TEXTS, shard_mb=7)


def shards(directory: Path) -> list[tuple[Any, Any]]:
    """Tokens and ends of each shard, read by hand."""
    return [
        (np.fromfile(directory / f"{name}.tokens", dtype="<u2"), np.fromfile(directory / f"{name}.ends", dtype="<i8"))
        for name in (shard.name for shard in read_index(directory).shards)
    ]


def test_sequences_are_the_tokens_in_order(directory: Path) -> None:
    dataset = TokenDataset(directory, 24)
    wanted = [tokens[: len(tokens) // 24 * 24].reshape(-1, 24) for tokens, _ in shards(directory)]
    assert len(wanted) > 3
    whole = np.concatenate(wanted)
    assert len(dataset) == len(whole)
    batch = dataset.read_batch(range(len(dataset)))
    assert (batch["input_ids"].numpy() == whole).all()
    assert batch["labels"] is batch["input_ids"]
    assert (dataset[-1]["input_ids"].numpy() == whole[-1]).all()
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_sequences_of_one_text_only(directory: Path) -> None:
    dataset = TokenDataset(directory, 16, crossing=False)
    wanted = []
    for tokens, ends in shards(directory):
        for text in np.split(tokens, ends[:-1]):
            wanted += [text[begin : begin + 16] for begin in range(0, len(text), 16)]
    assert len(dataset) == len(wanted)
    batch = dataset.read_batch(range(len(dataset)))
    for ids, labels, text in zip(batch["input_ids"].numpy(), batch["labels"].numpy(), wanted, strict=True):
        assert (ids[: len(text)] == text).all() and (labels[: len(text)] == text).all()
        assert (ids[len(text) :] == 0).all() and (labels[len(text) :] == -100).all()


def test_a_shard_that_is_missing(directory: Path) -> None:
    whole = len(TokenDataset(directory, 24))
    (directory / "shard-00001.tokens").rename(directory / "away")
    with pytest.raises(ConfigError, match=r"shard-00001\.tokens is missing: copy it again"):
        TokenDataset(directory, 24)
    with pytest.warns(UserWarning, match=r"shard-00001\.tokens is missing: left out"):
        assert len(TokenDataset(directory, 24, damaged="skip")) < whole


def test_bad_arguments(directory: Path) -> None:
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        TokenDataset(directory, 1)
    with pytest.raises(ConfigError, match=r"length 16\.5: a sequence is a whole number"):
        TokenDataset(directory, 16.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="choose 'stop' or 'skip'"):
        TokenDataset(directory, 8, damaged="no")
    with pytest.raises(ConfigError, match="no whole sequence of 1000000: choose a smaller length"):
        TokenDataset(directory, 10**6)


def samples(dataset: Any, plan: list[tuple[int, int, int]], *, shuffle: bool) -> list[int]:
    """Numbers of the samples that are trained, in their order: ``plan`` has, after each other, (ranks, batch size,
    batches), each with sources that begin where the ones before stopped."""
    found: list[int] = []
    position: dict[str, Any] | None = None
    for ranks, batch_size, batches in plan:
        sources = [DatasetSource(dataset, batch_size, seed=3, shuffle=shuffle, keep_last=True) for _ in range(ranks)]
        for source in sources:
            if position is not None:
                source.begin_at(position, 0)
        parts = [source.marked(rank, ranks) for rank, source in enumerate(sources)]
        ids = [source.indices(number, rank, ranks) for number in range(batches) for rank, source in enumerate(sources)]
        found += [index for part in ids for index in part or []]
        for stream in parts:
            next(stream)
        position = sources[0].position(batches)
    return found


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_it_goes_on_with_the_same_samples_on_any_number_of_ranks(directory: Path, mixed: bool, shuffle: bool) -> None:
    """1 -> 2 -> 4 -> 3 ranks, with other batch sizes, in the middle of an epoch and over its end."""
    plain = TokenDataset(directory, 24)
    dataset: Any = plain
    if mixed:
        dataset = TokenMixture({"a": plain, "b": TokenDataset(directory, 24, crossing=False)}, {"a": 0.7, "b": 0.3})
    batches = len(dataset) // 24 + 20
    plan = [(1, 8, 7), (2, 16, 5), (4, 24, batches), (3, 12, 9)]
    through = sum(batch_size * number for _, batch_size, number in plan)
    whole: list[int] = []
    for epoch in range(4):
        whole += dataset.sample_order(3, epoch, shuffle)[:].tolist()
    found = samples(dataset, plan, shuffle=shuffle)
    # an epoch ends with an incomplete batch
    assert found == whole[: len(found)]
    assert through - 24 <= len(found) <= through and len(found) > len(dataset)


def test_batches_are_read_at_once_and_equal_those_of_single_samples(directory: Path) -> None:
    dataset = TokenDataset(directory, 24)
    at_once = DatasetSource(dataset, 8, seed=1, shuffle=True).batches(1, 2)
    single = DatasetSource(dataset, 8, seed=1, shuffle=True, collate_fn=_stacked).batches(1, 2)
    for _ in range(5):
        one, other = next(at_once), next(single)
        assert (one["input_ids"] == other["input_ids"]).all() and one["input_ids"].shape == (4, 24)


def _stacked(samples: list[Any]) -> Any:
    return {"input_ids": torch.stack([sample["input_ids"] for sample in samples])}


def source(directory: Path, mixture: TokenMixture, index: int) -> str:
    return list(mixture.sources)[int(np.searchsorted(mixture.offsets, index, side="right")) - 1]


def test_shares_of_a_mixture_hold_in_every_block(directory: Path) -> None:
    sources = {name: TokenDataset(directory, 24) for name in ("web", "code", "rare")}
    mixture = TokenMixture(sources, {"web": 6, "code": 3, "rare": 1e-9})
    assert sum(mixture.shares.values()) == 1 and mixture.shares["rare"] == 1 / BLOCK
    order = mixture.sample_order(0, 0, True)
    assert len(order) == len(mixture) == 3 * len(sources["web"]) > BLOCK
    counted = Counter(source(directory, mixture, index) for index in order[:BLOCK])
    assert counted == {name: share * BLOCK for name, share in mixture.shares.items()}
    near = Counter(source(directory, mixture, index) for index in order[: BLOCK // 8])
    assert near["web"] > near["code"] > 0, "they are mixed within a block too"


def test_a_source_is_read_once_before_it_is_read_again(directory: Path) -> None:
    sources = {"big": TokenDataset(directory, 24), "small": TokenDataset(directory, 24, crossing=False)}
    mixture = TokenMixture(sources, {"big": 1, "small": 3})
    epochs = [mixture.sample_order(5, epoch, True)[:].tolist() for epoch in range(3)]
    for name, begin in (("big", 0), ("small", len(sources["big"]))):
        size = len(sources[name])
        own = [index - begin for order in epochs for index in order if source(directory, mixture, index) == name]
        assert len(own) > size
        assert sorted(own[:size]) == list(range(size))
        again = own[size : 2 * size]
        assert len(set(again)) == len(again) and again != own[: len(again)]
    assert mixture[len(mixture) - 1]["labels"].shape == (24,)
    in_order = mixture.sample_order(5, 0, False)[:].tolist()
    own = [index for index in in_order if index < len(sources["big"])]
    assert own == sorted(own)


def test_weights_are_turned_and_a_resume_knows_what_was_read(directory: Path) -> None:
    """Shares hold from the batch on that is read next; a checkpoint in between goes on with the same samples."""

    def mixture() -> tuple[TokenMixture, Knobs]:
        sources = {"big": TokenDataset(directory, 24), "small": TokenDataset(directory, 24, crossing=False)}
        mixed, knobs = TokenMixture(sources, {"big": 3, "small": 1}), Knobs()
        mixed.declare(knobs.knob)
        return mixed, knobs

    def read(mixed: TokenMixture, knobs: Knobs, begin: int, end: int, start: dict[str, Any] | None = None) -> Any:
        source = DatasetSource(mixed, 64, seed=2, shuffle=True)
        if start is not None:
            source.begin_at(start, begin)
        streams = [source.batches(rank, 2, begin) for rank in range(2)]
        found = []
        for number in range(begin, end):
            if number in turned:
                knobs.restore({**knobs.values(), **turned[number]})
            found += [next(stream)["input_ids"] for stream in streams]
        return torch.cat(found), source.position(end)

    turned = {9: {"mix.small": 6.0}, 21: {"mix.big": 0.0}, 22: {"mix.small": 0.0}, 30: {"mix.big": 1.0}}
    mixed, knobs = mixture()
    assert list(knobs.values()) == ["mix.big", "mix.small"]
    whole, _ = read(mixed, knobs, 0, 60)
    assert [round(each.numbers[1] / BLOCK, 3) for each in mixed.segments] == [0.25, 0.667, 1.0, 0.0]
    assert [each.start for each in mixed.segments] == [0, 9 * 64, 21 * 64, 30 * 64], "nothing changed while all are 0"
    order = np.concatenate([mixed.sample_order(2, epoch, True)[:] for epoch in range(3)])[: 60 * 64]
    is_small = order >= len(mixed.sources["big"])
    assert is_small[21 * 64 : 30 * 64].all() and not is_small[30 * 64 :].any()
    given = [int((~is_small[: 30 * 64]).sum()), int(is_small[: 30 * 64].sum())]
    assert mixed.segments[-1].given == given
    for name, own in (("small", order[is_small]), ("big", order[~is_small])):
        size = len(mixed.sources[name])
        assert len(set(own[:size].tolist())) == min(size, len(own)), "each once before one comes again"
    found: list[torch.Tensor] = []
    start, kept = None, {}
    for begin, end in ((0, 5), (5, 15), (15, 25), (25, 31), (31, 60)):
        again, own = mixture()
        own.restore({**own.values(), **kept})
        part, start = read(again, own, begin, end, None if start is None else json.loads(json.dumps(start)))
        kept = own.values()
        found.append(part)
    assert (torch.cat(found) == whole).all()


def test_sources_of_a_checkpoint_are_matched_by_name(directory: Path) -> None:
    long, one = TokenDataset(directory, 24), TokenDataset(directory, 24, crossing=False)
    state = json.loads(json.dumps(TokenMixture({"a": long, "b": one}, {"a": 3, "b": 1}).state()))
    other = TokenMixture({"b": one, "a": long}, {"a": 3, "b": 1})
    other.restore(state)
    assert other.shares == {"a": 0.75, "b": 0.25}
    same = TokenMixture({"a": long, "b": one}, {"a": 3, "b": 1})
    order = [mixture.sample_order(1, 0, True)[:300] for mixture in (other, same)]
    assert (order[0] == order[1]).all()
    assert (other.read_batch(order[0])["input_ids"] == same.read_batch(order[1])["input_ids"]).all()
    for sources in ({"a": long}, {"a": long, "c": one}, {"a": one, "b": long}, {"a": long, "b": one, "c": one}):
        with pytest.raises(ConfigError, match="goes on with the same sources only"):
            TokenMixture(sources, dict.fromkeys(sources, 1)).restore(state)


def test_bad_mixtures(directory: Path) -> None:
    dataset = TokenDataset(directory, 24)
    with pytest.raises(ConfigError, match="weights name 'cod', which is no source: did you mean 'code'"):
        TokenMixture({"code": dataset}, {"cod": 1})
    with pytest.raises(ConfigError, match="source 'web' has no weight"):
        TokenMixture({"code": dataset, "web": dataset}, {"code": 1})
    with pytest.raises(ConfigError, match="have one length: a 24, b 8"):
        TokenMixture({"a": dataset, "b": TokenDataset(directory, 8)}, {"a": 1, "b": 1})
    for weight in (-1, float("nan"), float("inf"), "x", None):
        with pytest.raises(ConfigError, match="the weight of 'a' is"):
            TokenMixture({"a": dataset}, {"a": weight})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="all weights are 0"):
        TokenMixture({"a": dataset}, {"a": 0})
    with pytest.raises(ConfigError, match="name it by letters"):
        TokenMixture({"my web": dataset}, {"my web": 1})
    with pytest.raises(ConfigError, match="at least one source"):
        TokenMixture({}, {})
