"""What a step is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: a tensor, or a dict, list or tuple of tensors whose dim 0 are the samples
Batch = Any


@dataclass(frozen=True, slots=True)
class StandIn:
    """In place of an empty piece of a batch: some sample of it, whose loss counts nothing.

    A rank without samples runs forward and backward all the same, so that it takes part in every reduction.
    """

    batch: Batch


def contents(piece: Batch) -> Batch:
    """The batch that the model is called with: ``piece``, or what stands in for it."""
    return piece.batch if isinstance(piece, StandIn) else piece
