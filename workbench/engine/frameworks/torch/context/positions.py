"""Which positions of a sequence each context-parallel rank has, and how ranks put tensors of them together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def lengths(positions: int, ranks: int) -> list[int]:
    """How many of the positions of a sequence each rank has: they follow one another, in the order of ranks."""
    return [positions // ranks + (rank < positions % ranks) for rank in range(ranks)]


class Positions:
    """The positions of sequences of ``total`` tokens that this rank of ``group`` has: ``first`` to ``last`` - 1."""

    def __init__(self, total: int, group: dist.ProcessGroup) -> None:
        self.total = total
        self.group = group
        self.rank = dist.get_rank(group)
        self.sizes = lengths(total, dist.get_world_size(group))
        self.first = sum(self.sizes[: self.rank])
        self.last = self.first + self.sizes[self.rank]

    def own(self, whole: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's part of a tensor of all positions."""
        return whole.narrow(dim, self.first, self.last - self.first)

    def keys(self, own: torch.Tensor, dim: int) -> torch.Tensor:
        """All positions of what each rank computes with in its own way: the gradient is summed over the ranks.

        Collective, also in the backward pass.
        """
        found: torch.Tensor = _Keys.apply(own, dim, self)
        return found

    def outputs(self, own: torch.Tensor, dim: int) -> torch.Tensor:
        """All positions of what every rank computes the same with: each has the whole gradient of its part.

        It is multiplied by the number of ranks, so that the mean over ranks of the gradients of weights is the gradient
        of the loss: of weights before, of which each rank has a part, and of those behind, which all have whole.
        Collective in the forward pass.
        """
        found: torch.Tensor = _Outputs.apply(own, dim, self)
        return found

    def gathered(self, own: torch.Tensor, dim: int) -> torch.Tensor:
        """All ranks' parts, one behind the other. Messages are padded to equal lengths. Collective."""
        sent = _padded(own, dim, max(self.sizes))
        parts = [torch.empty_like(sent) for _ in self.sizes]
        dist.all_gather(parts, sent, group=self.group)
        return torch.cat([part.narrow(dim, 0, size) for part, size in zip(parts, self.sizes, strict=True)], dim)

    def summed(self, whole: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's part of the sum over the ranks of ``whole``. Collective."""
        sent = [_padded(part, dim, max(self.sizes)) for part in whole.split(self.sizes, dim)]
        total = torch.empty_like(sent[0])
        dist.reduce_scatter(total, sent, group=self.group)
        return total.narrow(dim, 0, self.sizes[self.rank])


def _padded(part: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    if part.shape[dim] == size:
        return part.contiguous()
    shape = [*part.shape]
    shape[dim] = size - part.shape[dim]
    return torch.cat((part, part.new_zeros(shape)), dim)


class _Keys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, dim: int, positions: Positions) -> torch.Tensor:
        ctx.dim, ctx.positions = dim, positions
        return positions.gathered(own, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.positions.summed(gradients[0], ctx.dim), None, None


class _Outputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, dim: int, positions: Positions) -> torch.Tensor:
        ctx.dim, ctx.positions = dim, positions
        return positions.gathered(own, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        own = ctx.positions.own(gradients[0], ctx.dim)
        return own * len(ctx.positions.sizes), None, None
