"""A few elements of each gradient, at the same places on every replica: enough to compare any two of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from workbench.engine.base.parts import GradientPart

#: elements taken of each part of a layer
SAMPLES = 64
#: with fewer replicas every pair follows from norms and products with the mean
REPLICAS = 4


class Sketcher:
    """Draws the places once; they depend on the part's layer, its number in that layer and its size alone."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, int, int], torch.Tensor] = {}

    @torch.no_grad()
    def take(self, parts: Sequence[GradientPart], seen: dict[str, int]) -> tuple[list[tuple[str, str]], torch.Tensor]:
        """Keys and float32 ``(parts, SAMPLES)`` values, loss scale removed; of a smaller part the rest is zero.
        ``seen`` counts the parts of each layer so far in this step."""
        rows = []
        for part in parts:
            number = seen.get(part.layer, 0)
            seen[part.layer] = number + 1
            flat = part.tensor.detach().reshape(-1)
            places = self._of(part.layer, number, flat)
            values = flat.index_select(0, places).float() * (math.sqrt(flat.numel() / places.numel()) / part.scale)
            rows.append(torch.nn.functional.pad(values, (0, SAMPLES - values.numel())))
        return [(part.layer, part.sharded) for part in parts], torch.stack(rows)

    def _of(self, layer: str, number: int, flat: torch.Tensor) -> torch.Tensor:
        key = layer, number, flat.numel()
        if key not in self._places:
            if flat.numel() <= SAMPLES:
                places = torch.arange(flat.numel())
            else:
                random = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
                places = torch.randint(0, flat.numel(), (SAMPLES,), generator=random)
            self._places[key] = places.to(flat.device)
        return self._places[key]
