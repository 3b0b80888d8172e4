"""One bit for each element. Zero counts as positive."""

from __future__ import annotations

import torch

from workbench.engine.communication.base import Compressor, Draws
from workbench.engine.communication.packing import pack, unpack


class ScaledSign(Compressor):
    """Signs times the mean magnitude of the gradient."""

    def encode(self, gradient: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, ...]:
        """Signs, 8 in a byte, and the magnitude as one fp32."""
        return pack(gradient >= 0, 1), gradient.abs().mean().reshape(1)

    def decode(self, code: tuple[torch.Tensor, ...], length: int, draws: Draws) -> torch.Tensor:
        """Plus or minus the magnitude."""
        signs, magnitude = code
        return (unpack(signs, 1, length).float() * 2 - 1) * magnitude


class MajorityVote(ScaledSign):
    """Signs alone; the sign that most ranks have is the gradient, 0 where as many have one as the other."""

    def encode(self, gradient: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, ...]:
        """Signs, 8 in a byte, and 1 as one fp32: not a number where the gradient is not finite."""
        return pack(gradient >= 0, 1), ((gradient * 0).sum() + 1).reshape(1)

    def combined(self, mean: torch.Tensor) -> torch.Tensor:
        """The sign of the mean; what is not a number stays so."""
        return torch.where(mean.isnan(), mean, mean.sign())
