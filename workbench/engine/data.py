"""Where a replica's share of each global batch comes from.

Every source gives the same samples in the same order whatever the number of data-parallel replicas is: the shares of
replicas 0 .. dp_size-1, put together, are the global batch that a single process would see. Batches are any nesting of
mappings, tuples and lists of tensors whose dim 0 are the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import DistributedSampler, RandomSampler, default_collate

from workbench.engine.workload import Batch
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

    def batches(self, dp: int, dp_size: int) -> Iterator[Batch]:
        """This replica's share of each global batch, for ever. ``ConfigError`` if dp_size does not divide the batch."""
        share = _share(self.batch_size, dp_size)
        return self._mapped(dp * share, share) if self._map_style else self._iterated(dp * share, share)

    def _mapped(self, first: int, share: int) -> Iterator[Batch]:
        samples = len(self.dataset)
        for epoch in count():
            order = self._order(epoch, samples)
            for start in range(0, samples - self.batch_size + 1, self.batch_size):
                yield self.collate(self._fetch(order[start + first : start + first + share]))

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
        sampler = getattr(dataloader, "sampler", None)
        self._distributed = sampler if isinstance(sampler, DistributedSampler) else None
        self._shuffler = sampler if isinstance(sampler, RandomSampler) and sampler.generator is None else None
        self._batch_size = getattr(dataloader, "batch_size", None)
        self._generator = getattr(dataloader, "generator", None)
        self._generator_state = self._generator.get_state() if self._generator is not None else None

    def batches(self, dp: int, dp_size: int) -> Iterator[Batch]:
        """This replica's share of each batch, for ever. ``ConfigError`` if dp_size does not divide a batch."""
        if self._distributed is not None:
            _check_sampler(self._distributed, dp, dp_size)
        return self._epochs(dp, dp_size)

    def _epochs(self, dp: int, dp_size: int) -> Iterator[Batch]:
        if self._generator is not None:
            self._generator.set_state(self._generator_state)
        for epoch in count():
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
