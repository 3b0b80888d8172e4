"""Gradients summed in 16 bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from workbench.engine.communication.base import Averaged, Exchange, Finish, Gradient


class _Cast(Exchange):
    """Divided by the number of ranks before they are summed, so that sums do not overflow; rounded to the nearest."""

    dtype: torch.dtype

    def begin(
        self, gradients: Sequence[Gradient], group: dist.ProcessGroup | None
    ) -> tuple[torch.futures.Future[object] | None, Finish]:
        """As ``Exchange.begin``: one collective, which goes on while the backward pass does."""
        rounded = torch.cat([each.value.flatten() for each in gradients]).to(self.dtype)
        sums = rounded / dist.get_world_size(group)
        work = dist.all_reduce(sums, group=group, async_op=True)

        @torch.no_grad()
        def finish() -> list[Averaged]:
            means = _split(sums.float(), gradients)
            sent = _split(rounded.float(), gradients) if self.feedback else [None] * len(gradients)
            return [Averaged(mean, part) for mean, part in zip(means, sent, strict=True)]

        return work.get_future(), finish


class Fp16(_Cast):
    """fp16: 11 bits of precision; values above 65,504 are infinite."""

    dtype = torch.float16


class Bf16(_Cast):
    """bf16: 8 bits of precision, the range of fp32."""

    dtype = torch.bfloat16


def _split(flat: torch.Tensor, gradients: Sequence[Gradient]) -> list[torch.Tensor]:
    parts = flat.split([each.value.numel() for each in gradients])
    return [part.view(each.value.shape) for part, each in zip(parts, gradients, strict=True)]
