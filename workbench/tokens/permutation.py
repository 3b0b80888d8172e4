"""Orders of any number of samples that need no array of them: one after another, and random."""

from __future__ import annotations

from typing import Any, overload

import numpy as np

from workbench.core.ordered_samples import SampleOrder

_ROUNDS = 6
_CHUNK = 8192
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class InOrder(SampleOrder):
    """The samples ``0 .. size-1`` one after another."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> np.ndarray[Any, Any]: ...
    def __getitem__(self, place: int | slice) -> int | np.ndarray[Any, Any]:
        asked = range(self.size)[place]
        return asked if isinstance(asked, int) else np.array(asked, dtype=np.int64)


class Permutation(SampleOrder):
    """A permutation of ``0 .. size-1`` that depends on ``seed``, ``epoch`` and ``of`` (a number of what is permuted)
    only, computed where it is asked for.

    ``[place]`` gives the sample at a place, ``[begin:end]`` an array of samples; memory and time do not depend on
    ``size``, which may be up to 2^62. It is a balanced Feistel network on the next even number of bits, walked along
    its cycle until it is below ``size`` (Luby and Rackoff, SIAM J. Comput. 17(2), 1988; Black and Rogaway, CT-RSA 2002,
    "Ciphers with arbitrary finite domains"): fewer than four rounds of the network on average.
    """

    def __init__(self, size: int, seed: int, epoch: int = 0, of: int = 0) -> None:
        if not 0 <= size <= 2**62:
            raise ValueError(f"{size} samples: a permutation has 0 to 2^62")
        self.size = size
        self._half = max(1, ((max(size, 2) - 1).bit_length() + 1) // 2)
        self._mask = np.uint64((1 << self._half) - 1)
        words = np.random.SeedSequence([seed % 2**64, epoch, of]).generate_state(_ROUNDS, np.uint64)
        self._keys = [np.uint64(word) for word in words]
        self._chunk = (0, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> np.ndarray[Any, Any]: ...
    def __getitem__(self, place: int | slice) -> int | np.ndarray[Any, Any]:
        asked = range(self.size)[place]
        if isinstance(asked, int):
            return int(self.at(np.array([asked]))[0])
        if asked.step != 1 or len(asked) > _CHUNK:
            return self.at(np.array(asked, dtype=np.int64))
        begin, chunk = self._chunk
        if not begin <= asked.start <= asked.stop <= begin + len(chunk):
            # the slices of an epoch follow each other: many places at once take little longer than a few
            begin = asked.start
            chunk = self.at(np.arange(begin, min(begin + _CHUNK, self.size)))
            self._chunk = begin, chunk
        return chunk[asked.start - begin : asked.stop - begin]

    def at(self, places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The samples at ``places`` (integers of ``0 .. size-1``, any shape): int64 of that shape."""
        found = np.atleast_1d(self._shuffled(places.astype(np.uint64)))
        while (beyond := found >= np.uint64(self.size)).any():
            found[beyond] = self._shuffled(found[beyond])
        return found.astype(np.int64).reshape(places.shape)

    def _shuffled(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The network: a bijection of all numbers of twice ``_half`` bits."""
        half = np.uint64(self._half)
        left, right = numbers >> half, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return (left << half) | right


def _mixed(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mix the bits of 64-bit words (the finaliser of SplitMix64: Steele, Lea and Flood, OOPSLA 2014)."""
    words = (words ^ (words >> np.uint64(30))) * _MIX[0]
    words = (words ^ (words >> np.uint64(27))) * _MIX[1]
    return words ^ (words >> np.uint64(31))
