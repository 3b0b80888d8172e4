"""Batches of a dataloader: what it gives is the global batch, of which replicas take their shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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

from workbench.engine.agree.exchange import Exchange
from workbench.engine.base.batch import Batch
from workbench.engine.base.workload import EPOCH_END, EpochEnd
from workbench.engine.data.batches import samples_in, split
from workbench.engine.data.generators import DataGenerators
from workbench.engine.data.own_generators import own_generators
from workbench.engine.data.read_once import check_repeatable, remark_on_iterator
from workbench.engine.data.replica_samplers import check_sampler, is_distributed, remark_on_repeats
from workbench.engine.data.same_data import SameData
from workbench.engine.data.shared_order import SharedOrder
from workbench.engine.data.shares import raise_for_empty_epoch, skip, without_marks
from workbench.errors import ConfigError


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
        own = own_generators(dataloader)
        apart = own_generators(dataloader, without=[sampler, self._order]) if self._distributed_sampler else []
        self._generators = DataGenerators(seed, own, apart)

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

    def begin_at(self, position: dict[str, Any], number: int) -> str:
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
        return ""

    def batches(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Batch]:
        """Yield replica ``dp``'s share of each batch from number ``start`` on, without end.

        Whole epochs are skipped without reading when their length and order are known (torch's own samplers) and
        nothing draws from a generator of the cell's own; other skipped batches are read now. Raises ``ConfigError`` for
        a batch that cannot be cut as the plan needs it.
        """
        return without_marks(self.marked(dp, dp_size, start))

    def marked(self, dp: int, dp_size: int, start: int = 0) -> Iterator[Batch | EpochEnd]:
        """As ``Epochal.marked``; see ``batches``."""
        if self._distributed_sampler is not None:
            check_sampler(self._distributed_sampler, dp, dp_size)
        length = self._batches_per_epoch() if start and not self._is_drawn_here() else None
        epochs, left = divmod(start, length) if length else (0, start)
        return skip(self._read_epochs(dp, dp_size, epochs), left)

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

    def _is_drawn_here(self) -> bool:
        """Whether reading moves a generator of the cell's own on; workers draw from copies of it."""
        own = self._distributed_sampler is None and self._generators.has_own
        return own and not getattr(self.dataloader, "num_workers", 0)

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
        self._generators.rewind()
        return self._read_epoch(dp, dp_size, 0)

    def _read_epochs(self, dp: int, dp_size: int, first: int) -> Iterator[Batch | EpochEnd]:
        self._generators.rewind()
        for epoch in count(first):
            found = False
            for batch in self._read_epoch(dp, dp_size, epoch):
                found = True
                yield batch
            if not found:
                self._same.check(None)
                raise_for_empty_epoch(epoch, 0, self._batch_size or 1)
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
