"""Batch sources: they give each data-parallel replica its share of every global batch.

Every source gives the same samples in the same order whatever the number of replicas: the shares of replicas
0 .. dp_size-1, concatenated, are the global batch that a single process would see. Data are read under random
generators of their own (``DataGenerators``), so random augmentation too is the same for any number of replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from workbench.core.config import TrainSpec
from workbench.engine.agree.exchange import Exchange
from workbench.engine.base.batch import Batch, StandIn
from workbench.engine.base.workload import EPOCH_END, EpochEnd
from workbench.engine.data.batches import samples_in, split
from workbench.engine.data.generators import DataGenerators
from workbench.engine.data.read_once import check_repeatable, remark_on_iterator
from workbench.engine.data.replica_samplers import check_sampler, is_distributed, remark_on_repeats
from workbench.engine.data.same_data import SameData
from workbench.engine.data.shared_order import SharedOrder
from workbench.errors import ConfigError

Collate = Callable[[list[Any]], Batch]


class DatasetSource:
    """Global batches of ``batch_size`` samples of a dataset, epoch after epoch. An incomplete last batch is dropped, or
    given as it is with ``keep_last``; ``equal_parts``: a pipeline cuts each batch into so many equal parts.

    ``dataset`` is map-style (``len`` and ``[index]``) or any iterable of samples. It is read in its own order or, with
    ``shuffle`` (map-style only), in a permutation that depends on ``seed`` and the epoch only. ``collate_fn`` makes a
    batch from a list of samples (default: torch's). What a map-style dataset draws for a sample depends on the seed,
    the epoch and the sample's position in it only; an iterable is read whole by every rank. Raises ``ConfigError`` for
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
        self._generators = DataGenerators(seed)
        self._draws = False
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
        return _without_marks(self.marked(dp, dp_size, start))

    def marked(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Batch | EpochEnd]:
        """As ``Epochal.marked``; see ``batches``."""
        _share_size(self.batch_size, dp_size)
        if self._is_indexed:
            return self._read_indexed(dp, dp_size, start)
        return _skip(self._read_iterable(dp, dp_size), start)

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
        _share_size(self.batch_size, dp_size)
        epoch, begin = self._at(number)
        samples = len(self.dataset)
        first, last = _share(min(self.batch_size, samples - begin), dp, dp_size)
        return list(self._sample_order(epoch, samples)[begin + first : begin + last])

    def _read_indexed(self, dp: int, dp_size: int, skip: int) -> Iterator[Batch | EpochEnd]:
        samples = len(self.dataset)
        first_epoch, done = self._at(skip)
        for epoch in count(first_epoch):
            order = self._sample_order(epoch, samples)
            for start in range(done, samples if self.keep_last else samples - self.batch_size + 1, self.batch_size):
                first, last = _share(min(self.batch_size, samples - start), dp, dp_size)
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
        """Where batch ``number`` begins: ``epoch``, and ``samples`` of it before the batch; and the batch size."""
        if not self._is_indexed:
            return {"batch_size": self.batch_size}
        epoch, samples = self._at(number)
        return {"epoch": epoch, "samples": samples, "batch_size": self.batch_size}

    def begin_at(self, position: dict[str, Any], number: int) -> None:
        """Let batch ``number`` begin at ``position``, and count later ones from there. Raises ``ConfigError``
        for an iterable and another batch size: its batches are counted from its beginning."""
        if self._is_indexed and "epoch" in position:
            self._origin = (number, position["epoch"], position["samples"])
        elif position["batch_size"] is None:
            return  # of a dataloader whose batches have no known size
        elif position["batch_size"] != self.batch_size:
            what = "a dataset in place of a dataloader" if self._is_indexed else "an iterable dataset"
            instead = "" if self._is_indexed else ", or a dataset with len(dataset) and dataset[index]"
            raise ConfigError(
                f"{what} resumes only with the batch size of its checkpoint: use --batch-size "
                f"{position['batch_size']}{instead}",
                field="--batch-size",
            )

    def _sample_order(self, epoch: int, samples: int) -> Sequence[int]:
        if not self.shuffle:
            return range(samples)
        return torch.randperm(samples, generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()

    def _read_share(self, indices: Sequence[int], epoch: int, position: int) -> Batch:
        """Samples of ``indices``, whose first is at ``position`` of the epoch. Once the dataset was seen to draw random
        numbers, each sample is read with generators seeded for it; until then all of them are read at once."""
        generators = self._generators
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
            return self.collate(samples)

    def _fetch(self, indices: Sequence[int]) -> list[Any]:
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(list(indices))
        return [self.dataset[index] for index in indices]

    def _read_iterable(self, dp: int, dp_size: int) -> Iterator[Batch | EpochEnd]:
        for epoch in count():
            samples = self._generators.read(self.dataset, epoch)
            found = 0
            while batch := list(islice(samples, self.batch_size)):
                if len(batch) < self.batch_size:
                    if not self.keep_last:
                        break
                    self._check_last(len(batch))
                self._same.check(batch)
                first, last = _share(len(batch), dp, dp_size)
                with self._generators.in_use(epoch, found + first):
                    share = self.collate(batch[first:last]) if last > first else StandIn(self.collate(batch[:1]))
                found += len(batch)
                yield share
            if not found:
                self._same.check(None)
                _raise_for_empty_epoch(epoch, len(batch), self.batch_size)
            yield EPOCH_END

    def _check_last(self, samples: int) -> None:
        if samples % self._equal_parts:
            raise ConfigError(
                f"the last batch of an epoch has {samples} samples, which cannot be split into {self._equal_parts} "
                "equal parts, as pipeline parallelism needs: use another --batch-size, or --steps in place of "
                "--epochs, which drops it",
                field="--epochs",
            )


class LoaderSource:
    """The global batches of the user's own DataLoader; each replica takes its slice along dim 0.

    A loader with torch's ``DistributedSampler`` (or another sampler with ``rank`` and ``num_replicas``) already gives
    each replica its own batches, which are used unchanged. What the loader gives is trained, whatever its size. A
    shuffling loader without a generator gets one seeded with ``seed`` and the epoch. The order of any other sampler,
    batch sampler or generator is rank 0's (``share_with``). ``set_epoch`` of a sampler is called.
    ``equal_parts``: a pipeline cuts each batch into so many equal parts. Raises ``ConfigError`` for a ``dataloader``
    that is not iterable.
    """

    def __init__(self, dataloader: Any, *, seed: int = 0, equal_parts: int = 1) -> None:
        if not isinstance(dataloader, Iterable):
            raise ConfigError(
                f"dataloader is a {type(dataloader).__name__}, which cannot be iterated: pass a torch DataLoader",
                field="dataloader",
            )
        self.dataloader: Any = dataloader
        self.seed = seed
        self._equal_parts = equal_parts
        self._generators = DataGenerators(seed)
        self._order: Any = getattr(dataloader, "batch_sampler", None)
        self._sampler: Any = getattr(self._order, "sampler", None) or getattr(dataloader, "sampler", None)
        sampler = self._sampler
        self._distributed_sampler = sampler if is_distributed(sampler) else None
        self._seeded_sampler = sampler if type(sampler) is RandomSampler and sampler.generator is None else None
        self._batch_size = getattr(dataloader, "batch_size", None)
        # torch's own collation makes a list of columns, never one of samples, however many samples the last batch has
        is_of_columns = getattr(dataloader, "collate_fn", None) is default_collate
        self._expected = None if is_of_columns else self._batch_size
        self._same = SameData()
        self._generator = getattr(dataloader, "generator", None)
        self._generator_state = self._generator.get_state() if self._generator is not None else None

    def share_with(self, exchange: Exchange) -> None:
        """From now on rank 0 draws the order of samples where ranks might draw different ones, and ranks compare the
        first batch of a stream. Called once, before data are read, on all ranks."""
        indexed = hasattr(self.dataloader, "dataset") and not isinstance(self.dataloader.dataset, IterableDataset)
        if self._distributed_sampler is not None:
            return
        if not indexed:
            self._same.share_with(exchange)
            return
        if exchange.ranks == 1 or self._is_order_known():
            return
        name = "sampler" if self._order is None else "batch_sampler"
        loader = copy(self.dataloader)  # the user's own stays as it is; a DataLoader lets nobody set these
        loader.__dict__[name] = SharedOrder(getattr(loader, name), exchange)
        self.dataloader = loader

    def remarks(self) -> dict[str, str]:
        """What to tell of the data before the first step, by the name of the event."""
        found = {
            "repeated_samples": remark_on_repeats(self._distributed_sampler),
            "read_once": remark_on_iterator("dataloader", self.dataloader),
        }
        return {name: text for name, text in found.items() if text}

    def check_repeatable(self) -> None:
        """As ``Positioned.check_repeatable``."""
        check_repeatable("dataloader", self.dataloader)

    def position(self, number: int) -> dict[str, Any]:
        """Where batch ``number`` begins: after so many batches of ``batch_size`` samples (None: unknown)."""
        return {"batches": number, "batch_size": self._global_size()}

    def _global_size(self) -> int | None:
        replicas = 1 if self._distributed_sampler is None else self._distributed_sampler.num_replicas
        return None if self._batch_size is None else self._batch_size * replicas

    def begin_at(self, position: dict[str, Any], number: int) -> None:
        """Raise ``ConfigError`` for another batch size than that of the checkpoint: batches are counted from the
        beginning."""
        was, now = position["batch_size"], self._global_size()
        if None not in (was, now) and was != now:
            raise ConfigError(
                f"a dataloader resumes only with the batch size of its checkpoint, which is {was} over all ranks, not "
                f"{now}. Give it batch_size={was}, or define a dataset, which resumes at the next sample with any "
                "--batch-size",
                field="dataloader",
            )

    def batches(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Batch]:
        """Yield replica ``dp``'s share of each batch from number ``start`` on, without end.

        Whole epochs are skipped without reading when their length and order are known (torch's own samplers); other
        skipped batches are read now. Raises ``ConfigError`` for a batch that cannot be cut as the plan needs it.
        """
        return _without_marks(self.marked(dp, dp_size, start))

    def marked(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Batch | EpochEnd]:
        """As ``Epochal.marked``; see ``batches``."""
        if self._distributed_sampler is not None:
            check_sampler(self._distributed_sampler, dp, dp_size)
        length = self._batches_per_epoch() if start else None
        epochs, left = divmod(start, length) if length else (0, start)
        return _skip(self._read_epochs(dp, dp_size, epochs), left)

    def batches_through(self, epochs: int) -> int | None:
        """As ``Epochal.batches_through``: known for torch's own samplers."""
        length = self._batches_per_epoch()
        return None if length is None else epochs * length

    def epochs_at(self, number: int) -> float | None:
        """As ``Epochal.epochs_at``: known for torch's own samplers."""
        length = self._batches_per_epoch()
        return None if length is None else number / length

    def indices(self, number: int, dp: int, dp_size: int) -> list[int] | None:
        """Dataset indices of this replica's share of batch ``number`` (from 0).

        None when they are unknown: for an iterable dataset, or a sampler or generator of the user's own.
        """
        length = self._batches_per_epoch()
        if length is None:
            return None
        epoch, index = divmod(number, length)
        with self._epoch_order(epoch):
            batch = list(next(islice(self._order, index, None)))
        if self._distributed_sampler is not None:
            return batch
        return batch[len(batch) * dp // dp_size : len(batch) * (dp + 1) // dp_size]

    def _is_order_known(self) -> bool:
        """Whether the seed and the number of an epoch determine its order: torch's own samplers."""
        known = self._distributed_sampler or self._seeded_sampler or type(self._sampler) is SequentialSampler
        return bool(known) and self._generator is None and type(self._order) in (BatchSampler, type(None))

    def _batches_per_epoch(self) -> int | None:
        """Number of batches per epoch if the epoch's number determines their samples; None otherwise."""
        if not self._is_order_known() or self._order is None:
            return None
        return len(self._order) or None

    @contextmanager
    def _epoch_order(self, epoch: int) -> Iterator[None]:
        """Set the sampler to the order of ``epoch`` for the duration of the context; a running iteration is
        unaffected."""
        before = self._distributed_sampler.epoch if self._distributed_sampler is not None else 0
        generator = self._seeded_sampler.generator if self._seeded_sampler is not None else None
        self._start_epoch(epoch)
        try:
            yield
        finally:
            if self._distributed_sampler is not None:
                self._distributed_sampler.set_epoch(before)
            if self._seeded_sampler is not None:
                self._seeded_sampler.generator = generator

    def once(self, dp: int, dp_size: int) -> Iterator[Batch]:
        """Yield replica ``dp``'s share of each batch of one pass over the data, the same at every call: the first
        epoch. A share without samples is a ``StandIn``."""
        if self._distributed_sampler is not None:
            check_sampler(self._distributed_sampler, dp, dp_size)
        if self._generator is not None:
            self._generator.set_state(self._generator_state)
        return self._read_epoch(dp, dp_size, 0)

    def _read_epochs(self, dp: int, dp_size: int, first: int) -> Iterator[Batch | EpochEnd]:
        if self._generator is not None:
            self._generator.set_state(self._generator_state)
        for epoch in count(first):
            found = False
            for batch in self._read_epoch(dp, dp_size, epoch):
                found = True
                yield batch
            if not found:
                self._same.check(None)
                _raise_for_empty_epoch(epoch, 0, self._batch_size or 1)
            yield EPOCH_END

    def _read_epoch(self, dp: int, dp_size: int, epoch: int) -> Iterator[Batch]:
        own_stream = dp + 1 if self._distributed_sampler is not None else 0  # each replica reads other samples
        self._start_epoch(epoch)
        for batch in self._generators.read(self.dataloader, epoch, own_stream):
            self._same.check(batch)
            self._check_size(batch)
            parts = 1 if self._distributed_sampler is not None else dp_size
            yield split(batch, parts, expected=self._expected)[dp if parts > 1 else 0]

    def _check_size(self, batch: Batch) -> None:
        samples = samples_in(batch) if self._equal_parts > 1 else 0
        if samples % self._equal_parts:
            raise ConfigError(
                f"a batch of {samples} samples cannot be split into {self._equal_parts} equal parts, as pipeline "
                "parallelism needs: let the dataloader have drop_last=True and a collate_fn that drops no sample, or "
                "train without --pp",
                field="dataloader",
            )

    def _start_epoch(self, epoch: int) -> None:
        for sampler in (self._sampler, self._order):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        if self._seeded_sampler is not None:
            self._seeded_sampler.generator = torch.Generator().manual_seed(self.seed + epoch)


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


def _without_marks(stream: Iterator[Batch | EpochEnd]) -> Iterator[Batch]:
    return (item for item in stream if item is not EPOCH_END)


def _skip(stream: Iterator[Batch | EpochEnd], number: int) -> Iterator[Batch | EpochEnd]:
    """Read and drop the first ``number`` batches now, so that reading them draws its random numbers before the caller
    restores the state of the generators."""
    while number > 0:
        number -= next(stream) is not EPOCH_END
    return stream


def _share(samples: int, dp: int, dp_size: int) -> tuple[int, int]:
    """The first sample of replica ``dp``'s share of a batch, and the one after its last."""
    return samples * dp // dp_size, samples * (dp + 1) // dp_size


def _share_size(batch_size: int, dp_size: int) -> int:
    if batch_size % dp_size:
        raise ConfigError(
            f"--batch-size {batch_size} cannot be divided among {dp_size} data-parallel replicas: "
            f"use {max(1, round(batch_size / dp_size)) * dp_size}",
            field="--batch-size",
        )
    return batch_size // dp_size


def _check_length(samples: int, batch_size: int) -> None:
    if not samples:
        raise ConfigError("the dataset is empty: len(dataset) is 0", field="dataset")
    if samples < batch_size:
        raise ConfigError(
            f"the dataset has {samples} samples, fewer than one global batch of {batch_size}: "
            f"use --batch-size {samples} or less, or a larger dataset",
            field="--batch-size",
        )


def _raise_for_empty_epoch(epoch: int, samples: int, batch_size: int) -> None:
    """Raise the ``ConfigError`` for an epoch without a full batch. ``samples``: size of its incomplete batch."""
    if epoch:
        raise ConfigError(
            f"the data ended after {epoch} epoch{'s' if epoch > 1 else ''} and gives nothing when iterated again: "
            "pass an object whose __iter__ starts from the beginning (not a generator), or train for fewer --steps "
            "or --epochs",
            field="dataset",
        )
    what = f"only {samples} samples, fewer than one batch of {batch_size}" if samples else "no samples"
    raise ConfigError(f"the data gave {what}: use a smaller batch size, or more data", field="dataset")
