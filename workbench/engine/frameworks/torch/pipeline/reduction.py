"""What ranks tell each other of their gradients after the schedule: stages that hold the same parameter, replicas."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist

from workbench.engine.base.parts import BatchObserver
from workbench.engine.base.tensor import local_part
from workbench.engine.frameworks.torch_common.ddp_reduction import (
    LookBefore,
    average_gradients,
    gradient_kind,
    zero_gradient,
)
from workbench.engine.frameworks.torch_common.local_gradients import PartsOf
from workbench.engine.frameworks.torch_common.parameters import RankParameter


class StageReduction:
    """Adds up the gradients of tied parameters over their stages, then averages all over the replicas.

    ``replicas``: group of the ranks that hold the same stages, of ``size``. ``tied``: parameters with the group of the
    ranks of this pipeline that hold them.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        *,
        replicas: Any,
        size: int,
        tied: Sequence[tuple[torch.nn.Parameter, Any]],
        device: torch.device,
    ) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._replicas = replicas
        self._size = size
        self._tied = tied
        self._device = device
        self._look = LookBefore()

    @torch.no_grad()
    def finish(self) -> None:
        """Reduce. Collective over the stages, then over the replicas."""
        for parameter, group in self._tied:
            (kind,) = self._kinds([parameter], group)
            if kind:
                parameter.grad = zero_gradient(parameter, kind) if parameter.grad is None else parameter.grad
                dist.all_reduce(local_part(parameter.grad), group=group)
        self._look()
        if self._size > 1 and self._parameters:
            kinds = self._kinds(self._parameters, self._replicas)
            average_gradients(self._parameters, kinds, self._replicas, self._size)

    def _kinds(self, parameters: Sequence[torch.nn.Parameter], group: Any) -> list[int]:
        """The greatest ``gradient_kind`` of each on any rank of ``group``. Collective."""
        kinds = torch.tensor([gradient_kind(p.grad) for p in parameters], dtype=torch.int32, device=self._device)
        dist.all_reduce(kinds, op=dist.ReduceOp.MAX, group=group)
        found: list[int] = kinds.tolist()
        return found

    def watching(
        self, items: Sequence[RankParameter], parts_of: PartsOf, show: BatchObserver, *, keep: bool
    ) -> AbstractContextManager[None]:
        """Show the complete local gradients of ``items`` before they are averaged."""
        return self._look.watching(items, parts_of, show, keep=keep)
