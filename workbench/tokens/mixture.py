"""Several packed data sets in given shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from workbench.core.ordered_samples import OrderedSamples, SampleOrder
from workbench.errors import ConfigError, suggest
from workbench.tokens.permutation import Permutation

if TYPE_CHECKING:
    import torch

    from workbench.tokens.dataset import TokenDataset

#: samples that hold each source in its share exactly
BLOCK = 1024


class TokenMixture(OrderedSamples):
    """Sequences of several ``TokenDataset`` in the shares ``weights``: a source in 0.3 gives 30 % of the samples.

    Weights are taken relative to their sum, to 1/1024: of each 1,024 samples in a row (from the first), every source
    gives its share exactly, in a random order within them. A source is read in its own order, and again from its
    beginning (shuffled anew) when it ends. ``len`` is that of all sources together; where samples of an epoch stand
    does not depend on how many ranks read them. Raises ``ConfigError`` for names that differ, weights that are no
    shares, and sequences of different lengths.
    """

    def __init__(self, sources: Mapping[str, TokenDataset], weights: Mapping[str, float]) -> None:
        if not sources:
            raise ConfigError("a mixture needs at least one source", field="sources")
        for name in [*weights, *sources]:
            if name not in sources:
                raise ConfigError(
                    f"weights name {name!r}, which is no source: {suggest(name, sources)}", field="weights"
                )
            if name not in weights:
                raise ConfigError(f"source {name!r} has no weight", field="weights")
        lengths = {source.length for source in sources.values()}
        if len(lengths) > 1:
            listed = ", ".join(f"{name} {source.length}" for name, source in sources.items())
            raise ConfigError(f"sequences of a mixture have one length: {listed}", field="sources")
        self.sources = dict(sources)
        self.length = lengths.pop()
        self._numbers = _in_block([weights[name] for name in self.sources], list(self.sources))
        self.offsets = np.array([0, *accumulate(map(len, self.sources.values()))])

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source, as it is read."""
        return {name: number / BLOCK for name, number in zip(self.sources, self._numbers, strict=True)}

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[0] for name, values in self.read_batch([range(len(self))[index]]).items()}

    def read_batch(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> dict[str, torch.Tensor]:
        """The samples ``indices`` as one batch, whose tensors have shape [samples, length]. Sources are numbered one
        after another."""
        import torch

        places = np.asarray(indices, dtype=np.int64)
        owners = np.searchsorted(self.offsets, places, side="right") - 1
        found: dict[str, torch.Tensor] = {}
        for owner, source in enumerate(self.sources.values()):
            rows = np.flatnonzero(owners == owner)
            if not len(rows):
                continue
            for name, values in source.read_batch(places[rows] - self.offsets[owner]).items():
                if name not in found:
                    found[name] = torch.empty((len(places), self.length), dtype=values.dtype)
                found[name][torch.from_numpy(rows)] = values
        return found

    def sample_order(self, seed: int, epoch: int, shuffle: bool) -> SampleOrder:
        """The order of an epoch; without ``shuffle`` each source is read from its beginning to its end."""
        return _MixedOrder(self, self._numbers, seed, epoch, shuffle)

    def __repr__(self) -> str:
        listed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.shares.items())
        return f"TokenMixture({listed}): {len(self):,} sequences of {self.length}"


def _in_block(weights: Sequence[float], names: Sequence[str]) -> list[int]:
    """How many of ``BLOCK`` samples each source gives: by largest remainder, and at least one of a weight above 0."""
    for name, weight in zip(names, weights, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"the weight of {name!r} is {weight}: it is a number of at least 0", field="weights")
    whole = math.fsum(weights)
    if not whole:
        raise ConfigError("all weights are 0: give one source at least a weight above 0", field="weights")
    exact = [weight / whole * BLOCK for weight in weights]
    numbers = [max(math.floor(part), int(part > 0)) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: numbers[place] - exact[place])
    for place in by_remainder[: max(0, BLOCK - sum(numbers))]:
        numbers[place] += 1
    while sum(numbers) > BLOCK:  # of sources that were given their one
        numbers[numbers.index(max(numbers))] -= 1
    return numbers


class _MixedOrder(SampleOrder):
    """The samples of one epoch of a mixture, computed where they are asked for."""

    def __init__(self, mixture: TokenMixture, numbers: list[int], seed: int, epoch: int, shuffle: bool) -> None:
        self._length = len(mixture)
        self._offsets = mixture.offsets
        self._sizes = np.diff(mixture.offsets)
        self._numbers = np.array(numbers)
        self._labels = np.repeat(np.arange(len(numbers)), numbers)
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        self._orders: dict[tuple[int, int], Permutation] = {}

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> np.ndarray[Any, Any]: ...
    def __getitem__(self, place: int | slice) -> int | np.ndarray[Any, Any]:
        asked = range(self._length)[place]
        if isinstance(asked, int):
            return int(self._at(np.array([asked]))[0])
        return self._at(np.array(asked, dtype=np.int64))

    def _at(self, places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        whole = places + self._epoch * self._length
        found = np.empty(len(whole), dtype=np.int64)
        for block in np.unique(whole // BLOCK):
            rows = np.flatnonzero(whole // BLOCK == block)
            labels = self._labels_of(int(block))
            within = whole[rows] % BLOCK
            for source in np.unique(labels[within]):
                own = rows[labels[within] == source]
                before = np.cumsum(labels == source) - 1  # samples of the source in the block before each place
                ordinals = block * self._numbers[source] + before[whole[own] % BLOCK]
                found[own] = self._offsets[source] + self._in_source(int(source), ordinals)
        return found

    def _labels_of(self, block: int) -> np.ndarray[Any, Any]:
        """The source of each sample of a block."""
        return np.random.default_rng([self._seed % 2**64, block]).permutation(self._labels)

    def _in_source(self, source: int, ordinals: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The samples of a source that it gives as its ``ordinals``-th, over all its epochs."""
        size = int(self._sizes[source])
        places = ordinals % size
        if not self._shuffle:
            return places
        found = np.empty_like(places)
        for epoch in np.unique(ordinals // size):
            key = (source, int(epoch))
            if key not in self._orders:
                self._orders[key] = Permutation(size, self._seed, int(epoch), of=1 + source)
            rows = ordinals // size == epoch
            found[rows] = self._orders[key].at(places[rows])
        return found
