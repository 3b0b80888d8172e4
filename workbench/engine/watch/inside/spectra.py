"""Largest singular value of every weight by a power iteration that rides along with the training.

A vector for each weight is kept from one look to the next. As weights change little in between, a few iterations at
each look are enough for it to stay with the largest singular value, which is approached from below.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from workbench.core.records import SpectralStats
from workbench.engine.base.parts import WeightMatrix
from workbench.engine.watch.torch.host_copy import HostCopy

#: iterations at the first look at a weight, and at each later one
FIRST, LATER = 16, 2


@dataclass(slots=True)
class PendingSpectra:
    """Values of one step that are being copied to the host; call ``records`` once ``ready`` is true."""

    step: int
    rank: int
    weights: list[WeightMatrix]
    copy: HostCopy

    def ready(self) -> bool:
        """Whether the values have arrived on the host."""
        return self.copy.ready()

    def records(self) -> list[SpectralStats]:
        """One record per weight."""
        (found,) = self.copy.arrays()
        return [
            SpectralStats(step=self.step, rank=self.rank, layer=weight.layer, weight_sq=weight_sq, sigma_max=sigma)
            for weight, (weight_sq, sigma) in zip(self.weights, found.tolist(), strict=True)
        ]


class PowerIteration:
    """``add``: adds up values over the ranks that hold parts of the same weights (``Shaped.sum_over_shards``)."""

    def __init__(self, add: Callable[[torch.Tensor], object]) -> None:
        self._add = add
        self._vectors: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def look(self, weights: Sequence[WeightMatrix], step: int, rank: int) -> PendingSpectra | None:
        """Iterate, and begin to copy the squared norm and the largest singular value of the whole of each weight. The
        same weights at all ranks with parts of them. None without any weight."""
        if not weights:
            return None
        split = [weight for weight in weights if weight.split]
        ordered = [weight for weight in weights if not weight.split] + split
        is_new = any(self._vector(weight) is None for weight in ordered)
        self._vectors = {weight.layer: self._begun(weight, rank) for weight in ordered}
        for _ in range(FIRST if is_new else LATER):
            values = self._iterate(ordered)
        return PendingSpectra(step, rank, ordered, HostCopy([values]))

    def _vector(self, weight: WeightMatrix) -> torch.Tensor | None:
        known = self._vectors.get(weight.layer)
        return known if known is not None and known.numel() == weight.matrix.shape[1] else None

    def _begun(self, weight: WeightMatrix, rank: int) -> torch.Tensor:
        """The vector that was kept, or a random one: the same at all ranks where they hold the whole of it."""
        known = self._vector(weight)
        if known is not None:
            return known
        seed = zlib.crc32(f"{weight.layer} {rank if weight.split == 'columns' else ''}".encode())
        drawn = torch.randn(weight.matrix.shape[1], generator=torch.Generator().manual_seed(seed))
        return drawn.to(weight.matrix.device)

    def _iterate(self, weights: Sequence[WeightMatrix]) -> torch.Tensor:
        """One iteration, v <- W'Wv; of each weight its squared norm and, as |W'u| for the unit vector u along Wv, a
        lower bound of its largest singular value: float64 [weights, 2]."""
        matrices = [weight.matrix.float() for weight in weights]
        left = [matrix @ self._vectors[weight.layer] for matrix, weight in zip(matrices, weights, strict=True)]
        self._sum([part for part, weight in zip(left, weights, strict=True) if weight.split == "columns"])
        right = [matrix.T @ part for matrix, part in zip(matrices, left, strict=True)]
        squares = torch.stack(
            [torch.stack([_sq(matrix), _sq(part)]) for matrix, part in zip(matrices, left, strict=True)]
        )
        for place, weight in enumerate(weights):  # the second square: of what each rank has a part of
            if weight.split == "columns":
                squares[place, 1] = _sq(right[place])
        first_split = len(weights) - sum(bool(weight.split) for weight in weights)
        partial = squares[first_split:]
        self._sum([*(part for part, weight in zip(right, weights, strict=True) if weight.split == "rows"), partial])
        found = []
        for weight, part, whole, (weight_sq, square) in zip(weights, left, right, squares, strict=True):
            left_sq, right_sq = (_sq(part), square) if weight.split == "columns" else (square, _sq(whole))
            size = right_sq.sqrt()
            kept = whole / size
            self._vectors[weight.layer] = torch.where(kept.isfinite().all(), kept, self._vectors[weight.layer])
            found.append(torch.stack([weight_sq, torch.where(left_sq > 0, size / left_sq.sqrt(), left_sq)]))
        return torch.stack(found).double()

    def _sum(self, parts: Sequence[torch.Tensor]) -> None:
        """Add up the parts, in place, over the ranks, in one collective."""
        parts = [part for part in parts if part.numel()]
        if not parts:
            return
        together = torch.cat([part.reshape(-1) for part in parts])
        self._add(together)
        for part, whole in zip(parts, together.split([part.numel() for part in parts]), strict=True):
            part.copy_(whole.view_as(part))


def _sq(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of squares, added up in float64."""
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).square().float()
