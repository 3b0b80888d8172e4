"""A few levels for each element, rounded at random so that the mean is right."""

from __future__ import annotations

import torch

from workbench.engine.communication.base import Compressor, Draws
from workbench.engine.communication.packing import pack, unpack


class _Levels(Compressor):
    """Levels -``most`` to ``most`` of the largest magnitude over ``most``: floor(x + u), u uniform in [0, 1)."""

    most: int
    bits: int

    def encode(self, gradient: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, ...]:
        """Levels, and the unit as one fp32. A value that is not finite makes the unit so."""
        unit = gradient.abs().max() / self.most
        scaled = gradient / torch.where(unit == 0, 1.0, unit)
        noise = torch.rand(gradient.shape, generator=draws.own(), device=gradient.device)
        levels = (scaled + noise).floor().clamp(-self.most, self.most).nan_to_num().to(torch.int16) + self.most
        return (levels.to(torch.uint8) if self.bits == 8 else pack(levels, self.bits)), unit.reshape(1)

    def decode(self, code: tuple[torch.Tensor, ...], length: int, draws: Draws) -> torch.Tensor:
        """Levels times the unit."""
        packed, unit = code
        levels = packed if self.bits == 8 else unpack(packed, self.bits, length)
        return (levels.float() - self.most) * unit


class Int8(_Levels):
    """127 levels either side of zero."""

    most, bits = 127, 8


class Int4(_Levels):
    """7 levels either side of zero."""

    most, bits = 7, 4


class TernGrad(_Levels):
    """-1, 0 and 1: an element is 1 with the probability of its share of the largest."""

    most, bits = 1, 2
