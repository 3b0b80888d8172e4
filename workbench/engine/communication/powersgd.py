"""PowerSGD: gradients as products of two matrices of low rank (Vogels et al., arXiv 1905.13727, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from workbench.engine.communication.base import Averaged, Draws, Exchange, Finish, Gradient
from workbench.engine.communication.catalogue import is_low_rank


class PowerSgd(Exchange):
    """One step of a power iteration from the right factor of the step before; gradients that two factors would not make
    smaller (vectors, small matrices) are sent whole.

    Both all-reduces are over before backward goes on: ranks that began them in callbacks could mix up their order.
    """

    def __init__(self, number: float, *, feedback: bool) -> None:
        super().__init__(number, feedback=feedback)
        self._right: dict[str, torch.Tensor] = {}

    def state(self, name: str, shape: Sequence[int], draws: Draws) -> dict[str, torch.Tensor]:
        """The right factor, at first normal random numbers that all ranks draw alike."""
        if not is_low_rank(shape, self.number):
            return {}
        columns = torch.Size(shape[1:]).numel()
        first = torch.randn(columns, int(self.number), generator=draws.shared(), device=draws.device)
        self._right[name] = first
        return {"right_factor": first}

    def begin(
        self, gradients: Sequence[Gradient], group: dist.ProcessGroup | None
    ) -> tuple[torch.futures.Future[object] | None, Finish]:
        """As ``Exchange.begin``."""
        low = [each for each in gradients if each.name in self._right]
        whole = [each for each in gradients if each.name not in self._right]
        matrices = [each.value.flatten(1) for each in low]
        means, left = [], [matrix @ self._right[each.name] for each, matrix in zip(low, matrices, strict=True)]
        both = _mean([*left, *(each.value for each in whole)], group)
        left, means = [torch.linalg.qr(each).Q for each in both[: len(low)]], both[len(low) :]
        right = _mean([matrix.T @ factor for matrix, factor in zip(matrices, left, strict=True)], group)
        found = {each.name: Averaged(mean, each.value) for each, mean in zip(whole, means, strict=True)}
        for each, factor, other in zip(low, left, right, strict=True):
            mean = (factor @ other.T).view(each.value.shape)
            found[each.name] = Averaged(mean, mean)
            kept = self._right[each.name]
            kept.copy_(torch.where(other.isfinite().all(), other, kept))
        return None, lambda: [found[each.name] for each in gradients]


def _mean(tensors: Sequence[torch.Tensor], group: dist.ProcessGroup | None) -> list[torch.Tensor]:
    """The means over the ranks, by one all-reduce."""
    if not tensors:
        return []
    flat = torch.cat([each.flatten() for each in tensors])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    parts = flat.split([each.numel() for each in tensors])
    return [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)]
