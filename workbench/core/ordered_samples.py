"""Samples that know their own order: what a data set of any size offers to training. Loads no tensor library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import numpy as np


class SampleOrder(ABC):
    """The samples of an epoch in their order: their number, one of them, or a slice of them as an array, int64."""

    @abstractmethod
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> np.ndarray[Any, Any]: ...
    @abstractmethod
    def __getitem__(self, place: int | slice) -> int | np.ndarray[Any, Any]: ...


class OrderedSamples(ABC):
    """A map-style data set that says in which order an epoch reads its samples, and makes whole batches.

    Training asks for the order of an epoch in slices, so that it needs no array as long as the data set. A position in
    it is one number: it resumes on any number of ranks and with any batch size. Samples do not depend on random
    numbers.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples of an epoch."""

    @abstractmethod
    def __getitem__(self, index: int) -> Any:
        """One sample."""

    @abstractmethod
    def read_batch(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> Any:
        """The samples ``indices`` as a batch, unless a cell's ``collate_fn`` makes batches of single samples."""

    @abstractmethod
    def sample_order(self, seed: int, epoch: int, shuffle: bool) -> SampleOrder:
        """The samples of an epoch in their order, of length ``len(self)``; equal for equal arguments."""


class SettableSamples(OrderedSamples):
    """Ordered samples with settings that can be turned while they are read."""

    @abstractmethod
    def declare(self, knob: Callable[..., Any]) -> None:
        """Declare the settings. ``knob``: that of ``Knobs``."""

    @abstractmethod
    def begin_batch(self, seed: int, epoch: int, place: int) -> None:
        """Called on every rank before it reads its share of the global batch that begins at this place of an epoch:
        what settings change holds from here."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the data beside its position, as JSON types."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo ``state``."""
