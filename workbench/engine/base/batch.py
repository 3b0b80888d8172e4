"""What a step is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: a tensor, a NumPy array, or any nesting of containers of them (``base.containers``); their dim 0 are the samples
Batch = Any


@dataclass(frozen=True, slots=True)
class StandIn:
    """In place of an empty piece of a batch: some sample of it, whose loss counts nothing.

    A rank without samples runs forward and backward all the same, so that it takes part in every reduction.
    """

    batch: Batch


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples of a batch with lists. Which lists hold one entry per sample is seen in the whole batch, and kept in
    ``layout`` for further cuts: of a single sample it could not be told."""

    batch: Batch
    samples: int
    layout: Any


def contents(piece: Batch) -> Batch:
    """The batch that the model is called with: ``piece``, or what it wraps."""
    return piece.batch if isinstance(piece, StandIn | Piece) else piece
