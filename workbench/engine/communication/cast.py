"""Gradients summed in 16 bits."""

from __future__ import annotations

import torch

from workbench.engine.communication.base import Compressor, Draws


class _Cast(Compressor):
    summed = True
    dtype: torch.dtype

    def encode(self, gradient: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, ...]:
        """Rounded to the nearest."""
        return (gradient.to(self.dtype),)

    def decode(self, code: tuple[torch.Tensor, ...], length: int, draws: Draws) -> torch.Tensor:
        """In fp32 again."""
        return code[0].float()


class Fp16(_Cast):
    """fp16: 11 bits of precision; values above 65,504 are infinite."""

    dtype = torch.float16


class Bf16(_Cast):
    """bf16: 8 bits of precision, the range of fp32."""

    dtype = torch.bfloat16
