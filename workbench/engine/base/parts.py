"""Gradients and weights on their way from a strategy to those that watch them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class GradientPart:
    """One parameter's gradient, or this rank's part of it.

    ``layer`` is the qualified name of the owning module in the user's model. ``tensor`` holds exactly the elements that
    count (no padding, loss scale still inside). ``sharded`` as in ``records.GradientStats``. ``scale``: divide by it.
    ``source`` is for the strategy: what the gradient is of.
    """

    layer: str
    tensor: torch.Tensor
    sharded: str
    scale: float = 1.0
    source: Any = None


@dataclass(frozen=True, slots=True)
class PartNorms:
    """L2 norms of some gradients. ``parts``: what they are of, as in ``GradientPart``, with the number of elements.

    ``norms``: float64 [parts], on the device; divide by ``scale``.
    """

    parts: Sequence[tuple[str, str, int]]
    norms: torch.Tensor
    scale: float

    def squared(self) -> torch.Tensor:
        """Sum of the squares, loss scale removed: an fp32 scalar."""
        return (self.norms.square().sum() / self.scale**2).float()


#: called while backward runs with the local gradients that are about to be reduced together
BatchObserver = Callable[[list[GradientPart]], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Local gradients beside the reduced ones. ``pairs[i]`` belongs to the i-th part: (local, reduced) tensors over the
    same elements, which are the whole part where ``kind`` is "exact", and this rank's slice where it is "slice"."""

    kind: str
    pairs: list[list[tuple[torch.Tensor, torch.Tensor]]]


@dataclass(frozen=True, slots=True)
class WeightMatrix:
    """A trained weight, or this rank's part of it, as a matrix: the first dimension and all others together.

    ``layer``: as in ``GradientPart``, followed by the parameter's name unless that is "weight". ``split``: "" where the
    matrix is whole, "rows" or "columns" where the other ranks of ``Shaped.sum_over_shards`` hold the others.
    """

    layer: str
    matrix: torch.Tensor
    split: str


@dataclass(frozen=True, slots=True)
class WeightPart:
    """One parameter, or this rank's part of it, as the optimizer updates it (the fp32 master where there is one).

    ``moments``: the optimizer's first and second, None where it has none (yet)."""

    layer: str
    weight: torch.Tensor
    sharded: str
    moments: tuple[torch.Tensor | None, torch.Tensor | None]
