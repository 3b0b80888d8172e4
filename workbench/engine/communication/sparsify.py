"""A share of the elements of each gradient."""

from __future__ import annotations

import torch

from workbench.engine.communication.base import Compressor, Draws
from workbench.engine.communication.catalogue import kept


class TopK(Compressor):
    """The largest magnitudes, with their places. A value that is not a number counts as the largest."""

    def encode(self, gradient: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, ...]:
        """Values in fp32 and places in int32."""
        places = gradient.abs().topk(kept(len(gradient), self.number), sorted=False).indices
        return gradient[places], places.to(torch.int32)

    def decode(self, code: tuple[torch.Tensor, ...], length: int, draws: Draws) -> torch.Tensor:
        """Zeros elsewhere."""
        values, places = code
        return values.new_zeros(length).index_copy_(0, places.long(), values)


class RandomK(Compressor):
    """Elements that all ranks draw alike, so that their values can be summed."""

    summed = True

    def encode(self, gradient: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, ...]:
        """Values in fp32. A value that is not finite makes all of them so, as it may not be among them."""
        return (gradient[self._places(len(gradient), draws)] + (gradient * 0).sum(),)

    def decode(self, code: tuple[torch.Tensor, ...], length: int, draws: Draws) -> torch.Tensor:
        """Zeros elsewhere."""
        return code[0].new_zeros(length).index_copy_(0, self._places(length, draws), code[0])

    def _places(self, length: int, draws: Draws) -> torch.Tensor:
        drawn = torch.randperm(length, generator=draws.shared(), device=draws.device)
        return drawn[: kept(length, self.number)]
