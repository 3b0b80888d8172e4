"""The random generators that data are read under: a stream of their own beside those of the model and the loss."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.random import mtrand

from workbench.engine.data.own_generators import OwnGenerator

_MASK = 2**64 - 1
_END = object()


class DataGenerators:
    """Streams of torch's (CPU), Python's and NumPy's global generators that depend on ``seed`` and a position only,
    and of the cell's ``own`` ones that data are drawn from.

    While ``in_use``, the generators are in these streams; afterwards they go on where they were. What a sampler,
    a dataset or a ``collate_fn`` draws is therefore the same on every rank, whatever the model and the loss draw. The
    streams of ``own`` generators begin where the cell left these; those among them that are ``apart`` begin anew at
    each position, by the state that the cell left them in.
    """

    def __init__(self, seed: int, own: Sequence[OwnGenerator] = (), apart: Sequence[OwnGenerator] = ()) -> None:
        self._seed = seed
        self._own = own
        self._apart = apart
        self._first = [generator.get() for generator in own]
        self._streams = self._first
        self._torch = torch.Generator().get_state()
        self._python = random.Random(0).getstate()
        self._numpy: Any = np.random.MT19937(0)

    @contextmanager
    def in_use(self, *position: int) -> Iterator[None]:
        """Swap the streams in; begin them anew at ``position`` (the epoch, or the epoch and a sample) if given."""
        self._swap()
        try:
            if position:
                self.begin(*position)
            yield
        finally:
            self._swap()

    def begin(self, *position: int) -> None:
        """Seed the generators by the seed and ``position``; only while ``in_use``."""
        number = _mixed(self._seed, *position)
        torch.default_generator.manual_seed(number)
        random.seed(_mixed(number, 1))
        np.random.seed(_mixed(number, 2) & 0xFFFFFFFF)
        for generator in self._apart:
            generator.seed(_mixed(generator.number, *position))

    @property
    def has_own(self) -> bool:
        """Whether data hold generators of the cell's own."""
        return bool(self._own)

    def rewind(self) -> None:
        """Let the streams of the cell's own generators begin where the cell left these; only while not ``in_use``."""
        self._streams = self._first

    def state(self) -> tuple[Any, ...]:
        """Where the generators are; equal if nothing was drawn in between."""
        numpy = mtrand.get_bit_generator().state["state"]
        own = [generator.states()[""].numpy().tobytes() for generator in self._own]
        return (
            torch.default_generator.get_state().numpy().tobytes(),
            random.getstate(),
            numpy["key"].tobytes(),
            numpy["pos"],
            own,
        )

    def read(self, batches: Iterable[Any], *position: int) -> Iterator[Any]:
        """Iterate over ``batches`` with the streams in use, from ``position`` on."""
        with self.in_use(*position):
            iterator = iter(batches)
        _keep_queues(iterator)
        while True:
            with self.in_use():
                batch = next(iterator, _END)
            if batch is _END:
                return
            yield batch

    def _swap(self) -> None:
        before = torch.default_generator.get_state(), random.getstate(), mtrand.get_bit_generator()
        own = [generator.get() for generator in self._own]
        for generator, stream in zip(self._own, self._streams, strict=True):
            generator.set(stream)
        self._streams = own
        torch.default_generator.set_state(self._torch)
        random.setstate(self._python)
        mtrand.set_bit_generator(self._numpy)
        self._torch, self._python, self._numpy = before


def _keep_queues(iterator: Any) -> None:
    """Keep the queues of a ``DataLoader``'s iterator with workers for as long as the iterator lives.

    If both were part of one cycle, the garbage collector would close the queues before the iterator tells its workers
    through them to end, and would then wait 5 s for each worker.
    """
    queues = getattr(iterator, "_index_queues", None)
    if queues:
        _queues[iterator] = list(queues)


_queues: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()


def _mixed(*numbers: int) -> int:
    """A 64-bit hash of the numbers (splitmix64, Steele et al. 2014, once for each)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & _MASK
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _MASK
        mixed ^= mixed >> 31
    return mixed
