"""torch's ``DistributedDataParallel`` with sequences that are shared over ranks (context parallelism).

Every rank holds the whole model. Gradients are averaged over data-parallel and context-parallel ranks together.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from workbench.core.config import TrainSpec
from workbench.engine.base.parts import BatchObserver, GradientPart
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch.context.body import SharedBody, check_model
from workbench.engine.frameworks.torch.ddp import DdpStrategy
from workbench.engine.frameworks.torch_common.exchange import all_reduce_uncounted


class ContextStrategy(DdpStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    _body: SharedBody | None = None

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        super().check(spec, workload)
        if spec.plan.cp > 1:
            check_model(workload.model, spec.plan.cp)

    def _distribute(self) -> None:
        if self.mesh.cp > 1:
            mesh = init_device_mesh(self.device.type, (self.mesh.dp, self.mesh.cp), mesh_dim_names=("dp", "cp"))
            self._group = mesh["cp"].get_group()
            self._body = SharedBody(self.workload.model, self._group)
        super()._distribute()

    def watch_batches(
        self, observer: BatchObserver, layers: Collection[str] | None = None, *, keep: bool = False
    ) -> AbstractContextManager[None]:
        """As ``Watchable.watch_batches``: the local gradient is that of the replica's samples, of all positions."""
        if self.mesh.cp == 1:
            return super().watch_batches(observer, layers, keep=keep)
        items = [item for item in self._chosen(self._held, layers) if item.layer not in self._frozen]

        def show(parts: list[GradientPart]) -> None:
            by_item = {id(part.source): part for part in parts}
            has = torch.tensor([id(item) in by_item for item in items], dtype=torch.int32, device=self.device)
            all_reduce_uncounted(has, dist.ReduceOp.MAX, group=self._group)
            found = []
            for item, is_there in zip(items, has.tolist(), strict=True):
                if not is_there:
                    continue
                part = by_item.get(id(item))
                own = item.real(torch.zeros_like(item.parameter)) if part is None else part.tensor
                mean = own.clone(memory_format=torch.contiguous_format)
                all_reduce_uncounted(mean, group=self._group)
                mean /= self.mesh.cp
                scale = self.loss_scale() if part is None else part.scale
                found.append(GradientPart(item.layer, mean, item.sharded, scale, item))
            observer(found)

        return super().watch_batches(show, layers, keep=keep)

    def close(self) -> None:
        if self._body is not None:
            self._body.give_back()
            self._body = None
        super().close()
