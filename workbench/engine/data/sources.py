"""Where a replica's share of each global batch comes from.

Every source gives the same samples in the same order whatever the number of data-parallel replicas is: the shares of
replicas 0 .. dp_size-1, put together, are the global batch that a single process would see. Batches are any nesting of
mappings, tuples and lists of tensors whose dim 0 are the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler, default_collate

from workbench.engine.base.batch import Batch
from workbench.errors import ConfigError

Collate = Callable[[list[Any]], Batch]


class DatasetSource:
    """Global batches of ``batch_size`` samples of a dataset, read again and again; an incomplete last one is dropped.

    ``dataset`` is map-style (``len`` and ``[index]``) or any iterable of samples. It is read in its order, or with
    ``shuffle`` (map-style only) in a permutation that depends on ``seed`` and the epoch alone. ``collate_fn`` makes a
    batch of a list of samples (default: torch's). Raises ``ConfigError`` for a dataset that cannot fill one batch.
    """

    def __init__(
        self, dataset: Any, batch_size: int, *, seed: int, shuffle: bool, collate_fn: Collate | None = None
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.collate = collate_fn or default_collate
        self._map_style = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if self._map_style:
            _check_length(len(dataset), batch_size)
        elif not isinstance(dataset, Iterable):
            raise ConfigError(
                f"dataset is a {type(dataset).__name__}: it needs len(dataset) and dataset[index], or to be iterable",
                field="dataset",
            )
        elif shuffle:
            raise ConfigError(
                "--shuffle needs a dataset with a length and dataset[index]; an iterable has its own order",
                field="--shuffle",
            )

    def batches(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Batch]:
        """This replica's share of each global batch from number ``start`` on, for ever.

        A map-style dataset is not read for the batches left out, an iterable is. ``ConfigError`` if dp_size does not
        divide the batch.
        """
        share = _share(self.batch_size, dp_size)
        if self._map_style:
            return self._mapped(dp * share, share, start)
        return _skipped(self._iterated(dp * share, share), start)

    def indices(self, number: int, dp: int, dp_size: int) -> list[int] | None:
        """Dataset indices of this replica's share of global batch ``number`` (from 0); None for an iterable."""
        if not self._map_style:
            return None
        share = _share(self.batch_size, dp_size)
        epoch, index = divmod(number, len(self.dataset) // self.batch_size)
        first = index * self.batch_size + dp * share
        return list(self._order(epoch, len(self.dataset))[first : first + share])

    def _mapped(self, first: int, share: int, skip: int) -> Iterator[Batch]:
        samples = len(self.dataset)
        epochs, batches = divmod(skip, samples // self.batch_size)
        for epoch in count(epochs):
            order = self._order(epoch, samples)
            for start in range(batches * self.batch_size, samples - self.batch_size + 1, self.batch_size):
                yield self.collate(self._fetch(order[start + first : start + first + share]))
            batches = 0

    def _order(self, epoch: int, samples: int) -> Sequence[int]:
        if not self.shuffle:
            return range(samples)
        return torch.randperm(samples, generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()

    def _fetch(self, indices: Sequence[int]) -> list[Any]:
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(list(indices))
        return [self.dataset[index] for index in indices]

    def _iterated(self, first: int, share: int) -> Iterator[Batch]:
        for epoch in count():
            samples = iter(self.dataset)
            found = 0
            while len(batch := list(islice(samples, self.batch_size))) == self.batch_size:
                found += self.batch_size
                yield self.collate(batch[first : first + share])
            if not found:
                _refuse_empty_epoch(epoch, len(batch), self.batch_size)


class LoaderSource:
    """The global batches of the user's own DataLoader, of which each replica takes its slice along dim 0.

    A loader with a torch ``DistributedSampler`` gives each replica its own batches already: they are taken as they
    are. An incomplete last batch is dropped. A shuffling loader without a generator of its own is given one from
    ``seed``, so that all ranks see one order.
    """

    def __init__(self, dataloader: Any, *, seed: int = 0) -> None:
        if not isinstance(dataloader, Iterable):
            raise ConfigError(
                f"dataloader is a {type(dataloader).__name__}, which cannot be iterated: pass a torch DataLoader",
                field="dataloader",
            )
        self.dataloader = dataloader
        self.seed = seed
        self._sampler: Any = getattr(dataloader, "sampler", None)
        sampler = self._sampler
        self._distributed = sampler if isinstance(sampler, DistributedSampler) else None
        self._shuffler = sampler if isinstance(sampler, RandomSampler) and sampler.generator is None else None
        self._batch_size = getattr(dataloader, "batch_size", None)
        self._generator = getattr(dataloader, "generator", None)
        self._generator_state = self._generator.get_state() if self._generator is not None else None

    def batches(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Batch]:
        """This replica's share of each batch from number ``start`` on, for ever.

        Whole epochs are left out without reading where their length and order are known beforehand (torch's own
        samplers); what then remains to be skipped is read, now. ``ConfigError`` if dp_size does not divide a batch.
        """
        if self._distributed is not None:
            _check_sampler(self._distributed, dp, dp_size)
        length = self._batches_an_epoch() if start else None
        epochs, left = divmod(start, length) if length else (0, start)
        return _skipped(self._epochs(dp, dp_size, epochs), left)

    def indices(self, number: int, dp: int, dp_size: int) -> list[int] | None:
        """Dataset indices of this replica's share of batch ``number`` (from 0); None where torch's own samplers do not
        say (an iterable dataset, a sampler or generator of the user's)."""
        length = self._batches_an_epoch()
        if length is None:
            return None
        epoch, index = divmod(number, length)
        loader: Any = self.dataloader
        with self._order_of(epoch):
            batch = next(islice(loader.batch_sampler, index, None))
        if self._distributed is not None:
            return list(batch)
        share = _share(len(batch), dp_size)
        return list(batch[dp * share : (dp + 1) * share])

    def _batches_an_epoch(self) -> int | None:
        """How many full batches an epoch has, where the epoch's number alone says which; None otherwise."""
        known = self._distributed or self._shuffler or isinstance(self._sampler, SequentialSampler)
        if not known or self._generator is not None or not self._batch_size:
            return None
        if type(getattr(self.dataloader, "batch_sampler", None)) is not BatchSampler:
            return None
        return len(self._sampler) // self._batch_size or None

    @contextmanager
    def _order_of(self, epoch: int) -> Iterator[None]:
        """The sampler as it is in that epoch; an iteration that has begun is not disturbed."""
        before = self._distributed.epoch if self._distributed is not None else 0
        generator = self._shuffler.generator if self._shuffler is not None else None
        self._epoch(epoch)
        try:
            yield
        finally:
            if self._distributed is not None:
                self._distributed.set_epoch(before)
            if self._shuffler is not None:
                self._shuffler.generator = generator

    def _epochs(self, dp: int, dp_size: int, first: int) -> Iterator[Batch]:
        if self._generator is not None:
            self._generator.set_state(self._generator_state)
        for epoch in count(first):
            found, dropped = 0, 0
            for batch in self._epoch(epoch):
                samples = samples_in(batch)
                if self._batch_size is not None and samples != self._batch_size:
                    dropped = samples
                    continue
                found += 1
                yield batch if self._distributed is not None else split(batch, dp_size)[dp]
            if not found:
                _refuse_empty_epoch(epoch, dropped, self._batch_size or 1)

    def _epoch(self, epoch: int) -> Iterable[Batch]:
        if self._distributed is not None:
            self._distributed.set_epoch(epoch)
        if self._shuffler is not None:
            self._shuffler.generator = torch.Generator().manual_seed(self.seed + epoch)
        return self.dataloader


def _skipped(batches: Iterator[Batch], number: int) -> Iterator[Batch]:
    """``batches`` after the first ``number``, which are read now: whatever random numbers that takes are drawn before
    the caller restores a generator's state, not in the middle of training."""
    for _ in islice(batches, number):
        pass
    return batches


def samples_in(batch: Batch) -> int:
    """Number of samples: the length of dim 0, which all tensors of the batch share. ``ConfigError`` otherwise."""
    sizes = {tensor.shape[0] if tensor.dim() else -1 for tensor in _tensors(batch)}
    if not sizes:
        raise ConfigError(f"the batch (a {type(batch).__name__}) holds no tensor", field="dataset")
    if len(sizes) > 1 or -1 in sizes:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in _tensors(batch))
        raise ConfigError(
            f"tensors of shapes {shapes} in one batch: dim 0 of each must be the samples", field="dataset"
        )
    return next(iter(sizes))


def counts_tokens(batch: Batch, tokens_per_sample: int | None) -> bool:
    """Whether a batch is counted in tokens: its source says so, or it holds ``input_ids`` [samples, tokens]."""
    if tokens_per_sample is not None:
        return tokens_per_sample > 1
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return isinstance(ids, torch.Tensor) and ids.dim() > 1


def tokens_in(batch: Batch, tokens_per_sample: int | None) -> int:
    """Number of tokens; of samples where there are none. ``tokens_per_sample`` None: as the batch itself shows."""
    if tokens_per_sample is None:
        return batch["input_ids"].numel() if counts_tokens(batch, None) else samples_in(batch)
    return samples_in(batch) * tokens_per_sample


def split(batch: Batch, parts: int) -> list[Batch]:
    """``batch`` in ``parts`` equal pieces along dim 0 (views, in order). ``ConfigError`` if it does not divide."""
    if parts == 1:
        return [batch]
    samples = samples_in(batch)
    if samples % parts:
        raise ConfigError(
            f"a batch of {samples} samples cannot be cut into {parts} equal pieces: "
            f"use a batch size that {parts} divides, such as {max(1, round(samples / parts)) * parts}",
            field="--batch-size",
        )
    size = samples // parts
    return [_slice(batch, part * size, part * size + size, samples) for part in range(parts)]


def _tensors(batch: Batch) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from _tensors(value)


def _slice(batch: Batch, start: int, stop: int, samples: int) -> Batch:
    """Samples ``start:stop``. A list without tensors and as long as the batch (texts, ids) is cut too."""
    if isinstance(batch, torch.Tensor):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {key: _slice(value, start, stop, samples) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        if not any(True for _ in _tensors(batch)):
            return batch[start:stop] if len(batch) == samples else batch
        values = [_slice(value, start, stop, samples) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch


def _share(batch_size: int, dp_size: int) -> int:
    if batch_size % dp_size:
        raise ConfigError(
            f"--batch-size {batch_size} cannot be shared by {dp_size} data-parallel replicas: "
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


def _check_sampler(sampler: DistributedSampler, dp: int, dp_size: int) -> None:
    if (sampler.rank, sampler.num_replicas) != (dp, dp_size):
        raise ConfigError(
            f"the dataloader's DistributedSampler is for replica {sampler.rank} of {sampler.num_replicas}, but this "
            f"rank is data-parallel replica {dp} of {dp_size}: leave the sampler out (batches are then shared here), "
            f"or pass num_replicas={dp_size} and each rank's replica",
            field="dataloader",
        )


def _refuse_empty_epoch(epoch: int, samples: int, batch_size: int) -> None:
    """``ConfigError``: an iterable gave no full batch in a whole pass."""
    if epoch:
        raise ConfigError(
            f"the data ended after {epoch} pass{'es' if epoch > 1 else ''} and gives nothing when iterated again: "
            "pass an object whose __iter__ starts anew (not a generator), or train for fewer --steps",
            field="dataset",
        )
    what = f"only {samples} samples, fewer than one batch of {batch_size}" if samples else "no sample"
    raise ConfigError(f"the data gave {what}: use a smaller batch size, or more data", field="dataset")
