"""Batches of a dataset: replicas read their shares of every global batch themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import (
    default_collate,
)

from workbench.core.config import TrainSpec
from workbench.core.ordered_samples import OrderedSamples, SettableSamples
from workbench.engine.agree.exchange import Exchange
from workbench.engine.base.batch import Batch, StandIn
from workbench.engine.base.workload import EPOCH_END, EpochEnd
from workbench.engine.data.generators import DataGenerators
from workbench.engine.data.own_generators import own_generators
from workbench.engine.data.read_once import check_repeatable, remark_on_iterator
from workbench.engine.data.same_data import SameData
from workbench.engine.data.shares import raise_for_empty_epoch, share_of, share_size, skip, without_marks
from workbench.errors import ConfigError

Collate = Callable[[list[Any]], Batch]


class DatasetSource:
    """Global batches of ``batch_size`` samples of a dataset, epoch after epoch. An incomplete last batch is dropped, or
    given as it is with ``keep_last``; ``equal_parts``: a pipeline cuts each batch into so many equal parts.

    ``dataset`` is map-style (``len`` and ``[index]``) or any iterable of samples. It is read in its own order or, with
    ``shuffle`` (map-style only), in a permutation that depends on ``seed`` and the epoch only. ``collate_fn`` makes a
    batch from a list of samples (default: torch's). What a map-style dataset draws for a sample depends on the seed,
    the epoch and the sample's position in it only; an iterable is read whole by every rank. ``OrderedSamples`` have an
    order of their own, and make whole batches where there is no ``collate_fn``. Raises ``ConfigError`` for
    a dataset that cannot fill one batch.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        collate_fn: Collate | None = None,
        keep_last: bool = False,
        equal_parts: int = 1,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.collate = collate_fn or default_collate
        self.keep_last = keep_last
        self._equal_parts = equal_parts
        self._own = own_generators(dataset, self.collate)
        self._reading = DataGenerators(seed, self._own)
        #: of single samples and shares of batches, which replicas read apart from each other
        self._sharing = DataGenerators(seed, self._own, self._own)
        self._is_first_share = True
        self._draws = False
        self._reads_batches = collate_fn is None and isinstance(dataset, OrderedSamples)
        self._same = SameData()
        #: a batch's number, its epoch, and samples of the epoch before it: later batches are counted from there
        self._origin = (0, 0, 0)
        self._is_indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if self._is_indexed:
            _check_length(len(dataset), 1 if keep_last else batch_size)
            if keep_last:
                self._check_last(len(dataset) % batch_size)
        elif not isinstance(dataset, Iterable):
            raise ConfigError(
                f"dataset is a {type(dataset).__name__}: it must have len(dataset) and dataset[index], or be iterable",
                field="dataset",
            )
        elif shuffle:
            raise ConfigError(
                "--shuffle needs a dataset with len(dataset) and dataset[index]; an iterable is read in its own order",
                field="--shuffle",
            )

    def share_with(self, exchange: Exchange) -> None:
        """From now on ranks compare the first batch of an iterable, which each of them reads whole. Called once, before
        data are read, on all ranks."""
        if not self._is_indexed:
            self._same.share_with(exchange)

    def remarks(self) -> dict[str, str]:
        """What to tell of the data before the first step, by the name of the event."""
        text = remark_on_iterator("dataset", self.dataset)
        return {"read_once": text} if text else {}

    def check_repeatable(self) -> None:
        """As ``Positioned.check_repeatable``."""
        check_repeatable("dataset", self.dataset)

    def batches(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Batch]:
        """Yield replica ``dp``'s share of each global batch from number ``start`` on, without end.

        Skipped batches are not read from a map-style dataset; they are read from an iterable. Raises ``ConfigError`` if
        ``dp_size`` does not divide the batch size.
        """
        return without_marks(self.marked(dp, dp_size, start))

    def marked(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Batch | EpochEnd]:
        """As ``Epochal.marked``; see ``batches``."""
        share_size(self.batch_size, dp_size)
        if self._is_indexed:
            return self._read_indexed(dp, dp_size, start)
        return skip(self._read_iterable(dp, dp_size), start)

    def batches_through(self, epochs: int) -> int | None:
        """As ``Epochal.batches_through``."""
        if not self._is_indexed:
            return None
        origin, epoch, done = self._origin
        return origin + self._number_in(len(self.dataset) - done) + (epochs - epoch - 1) * self._number_in()

    def epochs_at(self, number: int) -> float | None:
        """As ``Epochal.epochs_at``."""
        if not self._is_indexed:
            return None
        epoch, samples = self._at(number)
        return epoch + samples / len(self.dataset)

    def _number_in(self, samples: int | None = None) -> int:
        """Number of batches of so many samples, or of an epoch."""
        samples = len(self.dataset) if samples is None else max(0, samples)
        return -(-samples // self.batch_size) if self.keep_last else samples // self.batch_size

    def indices(self, number: int, dp: int, dp_size: int) -> list[int] | None:
        """Dataset indices of this replica's share of global batch ``number`` (from 0); None for an iterable."""
        if not self._is_indexed:
            return None
        share_size(self.batch_size, dp_size)
        epoch, begin = self._at(number)
        samples = len(self.dataset)
        first, last = share_of(min(self.batch_size, samples - begin), dp, dp_size)
        return [int(index) for index in self._sample_order(epoch, samples)[begin + first : begin + last]]

    def _read_indexed(self, dp: int, dp_size: int, skip: int) -> Iterator[Batch | EpochEnd]:
        samples = len(self.dataset)
        first_epoch, done = self._at(skip)
        for epoch in count(first_epoch):
            order = self._sample_order(epoch, samples)
            for start in range(done, samples if self.keep_last else samples - self.batch_size + 1, self.batch_size):
                if isinstance(self.dataset, SettableSamples):
                    self.dataset.begin_batch(self.seed, epoch, start)
                first, last = share_of(min(self.batch_size, samples - start), dp, dp_size)
                begin, end = start + first, start + last
                if end > begin:
                    yield self._read_share(order[begin:end], epoch, begin)
                else:
                    yield StandIn(self._read_share(order[start : start + 1], epoch, start))
            done = 0
            yield EPOCH_END

    def _at(self, number: int) -> tuple[int, int]:
        """Epoch in which batch ``number`` is, and samples of the epoch before it."""
        origin, epoch, done = self._origin
        number -= origin
        left = self._number_in(len(self.dataset) - done)
        if number < left:
            return epoch, done + number * self.batch_size
        epochs, batches = divmod(number - left, self._number_in())
        return epoch + 1 + epochs, batches * self.batch_size

    def position(self, number: int) -> dict[str, Any]:
        """Where batch ``number`` begins: ``epoch``, and ``samples`` of it before the batch; the batch size; the
        ``length`` of the data set; and the state of data that have one."""
        if not self._is_indexed:
            return {"batch_size": self.batch_size}
        epoch, samples = self._at(number)
        found = {"epoch": epoch, "samples": samples, "batch_size": self.batch_size, "length": len(self.dataset)}
        return {**found, "data": self.dataset.state()} if isinstance(self.dataset, SettableSamples) else found

    def begin_at(self, position: dict[str, Any], number: int) -> str:
        """Let batch ``number`` begin at ``position``, and count later ones from there. Returns a warning for a data set
        of another length. Raises ``ConfigError`` for an iterable and another batch size: its batches are counted from
        its beginning."""
        if self._is_indexed and "epoch" in position:
            self._origin = (number, position["epoch"], position["samples"])
            if isinstance(self.dataset, SettableSamples) and "data" in position:
                self.dataset.restore(position["data"])
            length = position.get("length", len(self.dataset))  # unknown in a checkpoint of an earlier version
            return "" if length == len(self.dataset) else _other_length(length, len(self.dataset))
        if position["batch_size"] is None:
            return ""  # of a dataloader whose batches have no known size
        if position["batch_size"] != self.batch_size:
            what = "a dataset in place of a dataloader" if self._is_indexed else "an iterable dataset"
            instead = "" if self._is_indexed else ", or a dataset with len(dataset) and dataset[index]"
            raise ConfigError(
                f"{what} resumes only with the batch size of its checkpoint: use --batch-size "
                f"{position['batch_size']}{instead}",
                field="--batch-size",
            )
        return ""

    def _sample_order(self, epoch: int, samples: int) -> Any:
        """The samples of an epoch in their order; a slice gives their indices."""
        if isinstance(self.dataset, OrderedSamples):
            return self.dataset.sample_order(self.seed, epoch, self.shuffle)
        if not self.shuffle:
            return range(samples)
        return torch.randperm(samples, generator=torch.Generator().manual_seed(self.seed + epoch)).numpy()

    def _read_share(self, indices: Any, epoch: int, position: int) -> Batch:
        """Samples of ``indices``, whose first is at ``position`` of the epoch. Once the dataset was seen to draw random
        numbers, each sample is read with generators seeded for it; until then all of them are read at once."""
        if self._reads_batches:
            return self.dataset.read_batch(indices)
        generators = self._sharing
        with generators.in_use(epoch, position):
            if not self._draws:
                before = generators.state()
                samples = self._fetch(indices)
                self._draws = generators.state() != before
            if self._draws:
                samples = []
                for offset, index in enumerate(indices):
                    generators.begin(epoch, position + offset)
                    samples += self._fetch([index])
            share = self.collate(samples)
        if self._is_first_share and self._has_made_generators():
            return self._read_share(indices, epoch, position)
        return share

    def _has_made_generators(self) -> bool:
        """Whether reading the first share made generators, from which samples are drawn then."""
        self._is_first_share = False
        known = {id(each.generator) for each in self._own}
        late = [each for each in own_generators(self.dataset, self.collate) if id(each.generator) not in known]
        for number, each in enumerate(late):
            each.number = number  # where it is depends on how many samples the share has
        if late:
            self._draws = True
            self._own = [*self._own, *late]
            self._sharing = DataGenerators(self.seed, self._own, self._own)
        return bool(late)

    def _fetch(self, indices: Iterable[int]) -> list[Any]:
        numbers = [int(index) for index in indices]
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(numbers)
        return [self.dataset[number] for number in numbers]

    def _read_iterable(self, dp: int, dp_size: int) -> Iterator[Batch | EpochEnd]:
        self._reading.rewind()
        for epoch in count():
            samples = self._reading.read(self.dataset, epoch)
            found = 0
            while batch := list(islice(samples, self.batch_size)):
                if len(batch) < self.batch_size:
                    if not self.keep_last:
                        break
                    self._check_last(len(batch))
                self._same.check(batch)
                first, last = share_of(len(batch), dp, dp_size)
                with self._sharing.in_use(epoch, found + first):
                    share = self.collate(batch[first:last]) if last > first else StandIn(self.collate(batch[:1]))
                found += len(batch)
                yield share
            if not found:
                self._same.check(None)
                raise_for_empty_epoch(epoch, len(batch), self.batch_size)
            yield EPOCH_END

    def _check_last(self, samples: int) -> None:
        if samples % self._equal_parts:
            raise ConfigError(
                f"the last batch of an epoch has {samples} samples, which cannot be split into {self._equal_parts} "
                "equal parts, as pipeline parallelism needs: use another --batch-size, or --steps in place of "
                "--epochs, which drops it",
                field="--epochs",
            )


def dataset_source(dataset: Any, spec: TrainSpec, collate_fn: Collate | None = None) -> DatasetSource:
    """The source of a dataset under the options of a run. A run that counts epochs trains all samples of each."""
    parts = spec.plan.mesh.dp * spec.accumulate * spec.plan.micro_batches if spec.plan.pp > 1 else 1
    return DatasetSource(
        dataset,
        spec.batch_size,
        seed=spec.seed,
        shuffle=spec.shuffle,
        collate_fn=collate_fn,
        keep_last=spec.epochs > 0,
        equal_parts=parts,
    )


def steps_planned(spec: TrainSpec, data: DatasetSource) -> int:
    """Steps of a run over a dataset with ``len(dataset)``: those of its epochs or ``spec.steps``, what comes first."""
    ends = [spec.steps, data.batches_through(spec.epochs) if spec.epochs else 0]
    return min(end for end in ends if end)


def _other_length(then: int, now: int) -> str:
    return (
        f"the data set has {now} samples, and had {then} when the checkpoint was written: the order of samples is "
        "another, so this epoch reads some of them again and others not at all"
    )


def _check_length(samples: int, batch_size: int) -> None:
    if not samples:
        raise ConfigError("the dataset is empty: len(dataset) is 0", field="dataset")
    if samples < batch_size:
        raise ConfigError(
            f"the dataset has {samples} samples, fewer than one global batch of {batch_size}: "
            f"use --batch-size {samples} or less, or a larger dataset",
            field="--batch-size",
        )
