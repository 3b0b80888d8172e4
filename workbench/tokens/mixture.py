"""Several packed data sets in given shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from workbench.core.ordered_samples import SampleOrder, SettableSamples
from workbench.errors import ConfigError, suggest
from workbench.tokens.permutation import Permutation

if TYPE_CHECKING:
    import torch

    from workbench.tokens.dataset import TokenDataset

#: samples that hold each source in its share exactly
BLOCK = 1024


class TokenMixture(SettableSamples):
    """Sequences of several ``TokenDataset`` in the shares ``weights``: a source in 0.3 gives 30 % of the samples.

    Weights are taken relative to their sum, to 1/1024: of each 1,024 samples in a row (from the first), every source
    gives its share exactly, in a random order within them. A source is read in its own order, and again from its
    beginning (shuffled anew) when it ends. ``len`` is that of all sources together; where samples of an epoch stand
    does not depend on how many ranks read them.

    In a training cell each weight is a setting, ``mix.NAME``: a change holds from the next batch on, and a checkpoint
    knows which samples were read before it. While all weights are 0 the shares stay as they were. Raises
    ``ConfigError`` for names that differ or are no identifiers, weights that are no shares, and sequences of different
    lengths.
    """

    def __init__(self, sources: Mapping[str, TokenDataset], weights: Mapping[str, float]) -> None:
        if not sources:
            raise ConfigError("a mixture needs at least one source", field="sources")
        for name in [*weights, *sources]:
            if not name.isidentifier():
                raise ConfigError(f"source {name!r}: name it by letters, digits and _, for mix.NAME", field="sources")
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
        self._weights: dict[str, Any] = {name: _number(name, weights[name]) for name in self.sources}
        self._taken = self._present()
        self.segments = [Segment(0, [0] * len(self.sources), _in_block(self._taken))]
        self.offsets = _offsets(self.sources)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source, as it is read now."""
        return {name: number / BLOCK for name, number in zip(self.sources, self.segments[-1].numbers, strict=True)}

    def declare(self, knob: Callable[..., Any]) -> None:
        """Make a setting of each weight: ``mix.NAME``."""
        for name, weight in self._weights.items():
            self._weights[name] = knob(f"mix.{name}", float(weight), low=0, help=f"weight of {name} in the mixture")

    def _present(self) -> list[float]:
        return [float(weight) for weight in self._weights.values()]

    def begin_batch(self, seed: int, epoch: int, place: int) -> None:
        """Let weights that have changed hold from this place on."""
        present = self._present()
        if present == self._taken or not any(present):
            return
        numbers, start, last = _in_block(present), epoch * len(self) + place, self.segments[-1]
        if start < last.start:
            return  # it was read before, with the weights of that time
        self._taken = present
        if numbers != last.numbers:
            before = last.given_before(start, seed)
            kept = self.segments[:-1] if start == last.start else self.segments
            self.segments = [*kept, Segment(start, before, numbers)]

    def state(self) -> dict[str, Any]:
        """From which sample on which shares held, and what each source had given by then."""
        return {
            "sources": {name: len(source) for name, source in self.sources.items()},
            "segments": [[each.start, each.given, each.numbers] for each in self.segments],
            "weights": self._taken,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo ``state``; sources are matched by name. Raises ``ConfigError`` where their names or lengths are
        others."""
        then, now = state["sources"], {name: len(source) for name, source in self.sources.items()}
        if then != now:
            listed = [
                "; ".join(f"{name}: {number:,} sequences" for name, number in each.items()) for each in (then, now)
            ]
            raise ConfigError(
                f"the checkpoint is of a mixture of {listed[0]}, and the cell's is of {listed[1]}: it goes on with the "
                "same sources only",
                field="dataset",
            )
        self.sources = {name: self.sources[name] for name in then}
        self._weights = {name: self._weights[name] for name in then}
        self.offsets = _offsets(self.sources)
        self.segments = [Segment(start, list(given), list(numbers)) for start, given, numbers in state["segments"]]
        self._taken = list(state["weights"])

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
        return _MixedOrder(self, seed, epoch, shuffle)

    def __repr__(self) -> str:
        listed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.shares.items())
        return f"TokenMixture({listed}): {len(self):,} sequences of {self.length}"


def _offsets(sources: Mapping[str, TokenDataset]) -> np.ndarray[Any, Any]:
    """The number of the first sample of each source, and of all samples."""
    return np.array([0, *accumulate(map(len, sources.values()))])


def _number(name: str, weight: Any) -> float:
    """A weight as a number of at least 0."""
    try:
        found = float(weight)
    except (TypeError, ValueError):
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise ConfigError(f"the weight of {name!r} is {weight!r}: it is a number of at least 0", field="weights")
    return found


def _in_block(weights: Sequence[float]) -> list[int]:
    """How many of ``BLOCK`` samples each source gives: by largest remainder, and at least one of a weight above 0."""
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


@dataclass(frozen=True)
class Segment:
    """Samples from number ``start`` on (over all epochs) that hold each source ``numbers`` times in each block.
    ``given``: how many samples each source had given before."""

    start: int
    given: list[int]
    numbers: list[int]

    def sources(self, block: int, seed: int) -> np.ndarray[Any, Any]:
        """The source of each sample of one block of the segment."""
        labels = np.repeat(np.arange(len(self.numbers)), self.numbers)
        return np.random.default_rng([seed % 2**64, self.start, block]).permutation(labels)

    def given_before(self, sample: int, seed: int) -> list[int]:
        """How many samples each source has given before this one of the segment."""
        block, within = divmod(sample - self.start, BLOCK)
        begun = np.bincount(self.sources(block, seed)[:within], minlength=len(self.numbers))
        return (np.array(self.given) + block * np.array(self.numbers) + begun).tolist()


class _MixedOrder(SampleOrder):
    """The samples of one epoch of a mixture, computed where they are asked for."""

    def __init__(self, mixture: TokenMixture, seed: int, epoch: int, shuffle: bool) -> None:
        self._mixture = mixture
        self._sizes = np.diff(mixture.offsets)
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        self._orders: dict[tuple[int, int], Permutation] = {}

    def __len__(self) -> int:
        return len(self._mixture)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> np.ndarray[Any, Any]: ...
    def __getitem__(self, place: int | slice) -> int | np.ndarray[Any, Any]:
        asked = range(len(self))[place]
        if isinstance(asked, int):
            return int(self._at(np.array([asked]))[0])
        return self._at(np.array(asked, dtype=np.int64))

    def _at(self, places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        whole = places + self._epoch * len(self)
        found = np.empty(len(whole), dtype=np.int64)
        segments = self._mixture.segments
        owners = np.searchsorted([segment.start for segment in segments], whole, side="right") - 1
        for owner in set(owners.tolist()):
            segment = segments[owner]
            blocks, within = np.divmod(whole - segment.start, BLOCK)
            for block in set(blocks[owners == owner].tolist()):
                rows = np.flatnonzero((owners == owner) & (blocks == block))
                found[rows] = self._in_block(segment, block, within[rows])
        return found

    def _in_block(self, segment: Segment, block: int, within: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        sources = segment.sources(block, self._seed)
        found = np.empty(len(within), dtype=np.int64)
        for source in set(sources[within].tolist()):
            rows = np.flatnonzero(sources[within] == source)
            before = np.cumsum(sources == source) - 1  # samples of the source in the block before each place
            ordinals = segment.given[source] + block * segment.numbers[source] + before[within[rows]]
            found[rows] = self._mixture.offsets[source] + self._in_source(source, ordinals)
        return found

    def _in_source(self, source: int, ordinals: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The samples of a source that it gives as its ``ordinals``-th, over all its epochs."""
        size = int(self._sizes[source])
        epochs, places = np.divmod(ordinals, size)
        if not self._shuffle:
            return places
        found = np.empty_like(places)
        for epoch in set(epochs.tolist()):
            key = (source, epoch)
            if key not in self._orders:
                self._orders[key] = Permutation(size, self._seed, epoch, of=1 + source)
            rows = epochs == epoch
            found[rows] = self._orders[key].at(places[rows])
        return found
