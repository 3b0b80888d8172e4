"""Samples a few elements of each gradient, at the same indices on every replica, so that any two can be compared."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch

from workbench.engine.base.parts import GradientPart

#: elements taken of each part of a layer
SAMPLES = 64
#: fewest replicas for which sketches are taken; with fewer, norms and products with the mean determine every pair
REPLICAS = 4


class Sketcher:
    """Draws the sampled indices once per part of a layer.

    The indices depend only on the layer's name, the part's number within the layer, and its size.
    """

    def __init__(self) -> None:
        self._indices: dict[tuple[str, int, int], torch.Tensor] = {}

    @torch.no_grad()
    def take(self, parts: Sequence[GradientPart], seen: dict[str, int]) -> tuple[list[tuple[str, str]], torch.Tensor]:
        """Return the parts' keys and their sampled values, float32 [parts, SAMPLES], without the loss scale.

        Values are scaled by sqrt(elements / samples), so that their norm estimates the part's norm. Rows of parts with
        fewer than ``SAMPLES`` elements are padded with zeros. ``seen`` counts the parts of each layer in this step; it
        is updated.
        """
        rows = []
        for part in parts:
            number = seen.get(part.layer, 0)
            seen[part.layer] = number + 1
            flat = part.tensor.detach().reshape(-1)
            indices = self._indices_of(part.layer, number, flat)
            values = flat.index_select(0, indices).float() * (math.sqrt(flat.numel() / indices.numel()) / part.scale)
            rows.append(torch.nn.functional.pad(values, (0, SAMPLES - values.numel())))
        return [(part.layer, part.sharded) for part in parts], torch.stack(rows)

    def _indices_of(self, layer: str, number: int, flat: torch.Tensor) -> torch.Tensor:
        key = layer, number, flat.numel()
        if key not in self._indices:
            if flat.numel() <= SAMPLES:
                indices = torch.arange(flat.numel())
            else:
                random = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
                indices = torch.randint(0, flat.numel(), (SAMPLES,), generator=random)
            self._indices[key] = indices.to(flat.device)
        return self._indices[key]
