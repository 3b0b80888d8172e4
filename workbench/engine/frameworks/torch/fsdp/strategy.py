"""torch's FSDP2: parameters, gradients and optimizer state are split over the data-parallel ranks.

Each block's parameters are gathered when it computes. With ``replicate`` the ranks form groups that each hold all
shards (HSDP). In mixed precision ranks gather and compute in bf16 or fp16, over fp32 shards, and reduce in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from workbench.core.config import TrainSpec
from workbench.engine.base.batch import Batch
from workbench.engine.base.parts import BatchObserver, Comparison, GradientPart, WeightPart
from workbench.engine.base.tensor import local_part
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch.ddp import FIRST_SCALE, DdpStrategy
from workbench.engine.frameworks.torch.fsdp import checks
from workbench.engine.frameworks.torch.fsdp.local_gradients import before_reduce_scatter
from workbench.engine.frameworks.torch.fsdp.loss_scale import SharedLossScale
from workbench.engine.frameworks.torch.fsdp.sharding import (
    blocks_of,
    gathered,
    replace_parameters,
    shard,
    sharded_modules,
    sharded_parameters,
)
from workbench.engine.frameworks.torch.fsdp.shards import ShardPlaces
from workbench.engine.frameworks.torch_common.losses.terms import LossTerm
from workbench.engine.frameworks.torch_common.optimizer_state import moments_of
from workbench.engine.frameworks.torch_common.parameters import RankParameter, rank_parameters
from workbench.engine.frameworks.torch_common.weight_changes import check_unchanged
from workbench.engine.state.layout import RankState


class FsdpReduction:
    """Gradients are reduced while backward of the last piece runs; those of earlier pieces stay whole on their rank."""

    #: the recorder of collectives sees its calls
    afterwards = True

    def __init__(self, module: torch.nn.Module, items: Sequence[RankParameter]) -> None:
        self._root = sharded_modules(module)[0]
        self._items = {id(item.parameter): item for item in items}

    @contextmanager
    def around(self, *, is_last: bool) -> Iterator[None]:
        """As ``DdpReduction.around``."""
        self._root.set_requires_gradient_sync(is_last)
        yield

    def looks_at(self, loss: torch.Tensor) -> None:
        """Nothing is to be known of the graph."""

    def finish(self) -> None:
        """Nothing is left to reduce."""


class FsdpStrategy(DdpStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        super().check(spec, workload)
        checks.check(spec, workload)

    def _distribute(self) -> None:
        plan = self.spec.plan
        self._entered = False
        self.places = ShardPlaces(self.originals.shapes, self.mesh, self.coordinates, replicate=plan.replicate)
        before = {self.originals.name(name): parameter for name, parameter in self._module.named_parameters()}
        sizes, names = (plan.replicate, self.mesh.dp // plan.replicate), ("replicate", "shard")
        mesh = init_device_mesh(self.device.type, sizes, mesh_dim_names=names)
        shard(
            self._module,
            blocks_of(self._module),
            mesh if plan.replicate > 1 else mesh["shard"],
            precision=self.spec.precision,
            no_reshard=plan.no_reshard,
        )
        after = {self.originals.name(name): parameter for name, parameter in self._module.named_parameters()}
        cut = lambda name, whole: self.places.place(name).of(whole)  # noqa: E731
        replace_parameters(self._optimizer, before, after, cut)
        self._parameter_names = {id(parameter): name for name, parameter in after.items()}
        self._held = rank_parameters(self._module, self._names)
        self._mine = self._held
        self._sharded = "dp" if self.mesh.dp > 1 else ""
        self._shares = {(item.layer, self._sharded) for item in self._mine}
        self.model = self._module
        sharded_modules(self._module)[0]._get_fsdp_state()._lazy_init()  # before a block computes by itself
        self._reduction = FsdpReduction(self._module, self._held)

    def _make_scaler(self) -> SharedLossScale:
        return SharedLossScale(FIRST_SCALE, enabled=self.spec.precision == "fp16")

    def _gradients(self) -> list[torch.Tensor]:
        return [local_part(gradient) for gradient in super()._gradients()]

    def _versioned(self) -> list[RankParameter]:
        """The gathered parameters, of which the forward pass computes: those that were gathered before."""
        whole = {id(each.sharded_param): each for each in sharded_parameters(self._module)}
        found = [(item, whole[id(item.parameter)]) for item in self._held]
        return [
            replace(item, parameter=each._unsharded_param) for item, each in found if hasattr(each, "_unsharded_param")
        ]

    def _check_weights(self, items: list[RankParameter], before: list[int]) -> None:
        check_unchanged(items, before, self.spec.plan.plugin)

    def step(self) -> bool:
        is_scaled = self._scaler.is_enabled()
        norm = self._global_norm() if self._clip > 0 or is_scaled else 0.0
        overflowed = is_scaled and not norm < float("inf")
        factor = 1 / self._scaler.get_scale()
        if self._clip > 0 and norm > self._clip:
            factor *= self._clip / (norm + 1e-6)
        if not overflowed:
            if factor != 1:
                torch._foreach_mul_(self._gradients(), factor)
            self._optimizer.step()
        self._scaler.update(overflowed=overflowed)
        self._optimizer.zero_grad()
        return not overflowed

    def watch_batches(
        self, observer: BatchObserver, layers: Collection[str] | None = None, *, keep: bool = False
    ) -> AbstractContextManager[None]:
        """As ``Watchable.watch_batches``."""
        items = [item for item in self._chosen(self._held, layers) if item.layer not in self._frozen]
        scale = self.loss_scale()

        def part_of(item: RankParameter, gradient: torch.Tensor) -> GradientPart:
            return GradientPart(item.layer, gradient, "", scale, item)

        by_id = {id(item.parameter): item for item in items}
        return before_reduce_scatter(by_id, part_of, self.aside(observer))

    def compare(self, parts: Sequence[GradientPart]) -> Comparison:
        """As ``Watchable.compare``: this rank has a slice of the reduced gradient."""
        pairs = []
        for part in parts:
            name = self._parameter_names[id(part.source.parameter)]
            reduced = self._own(local_part(part.source.parameter.grad))
            pairs.append([(self._own(self.places.place(name).of(part.tensor)), reduced)])
        return Comparison("exact" if self.mesh.dp == 1 else "slice", pairs)

    def reports(self, layer: str, sharded: str) -> bool:
        """As ``Watchable.reports``."""
        return (layer, sharded) in self._shares

    def weights(self, layers: Collection[str] | None = None) -> list[WeightPart]:
        """As ``Watchable.weights``."""
        found = []
        for item in self._chosen(self._mine, layers):
            moments = moments_of(self._optimizer, item.parameter)
            first, second = [None if moment is None else self._own(local_part(moment)) for moment in moments]
            weight = self._own(local_part(item.parameter.detach()))
            found.append(WeightPart(item.layer, weight, self._sharded, (first, second)))
        return found

    def _parts(self, items: Sequence[RankParameter]) -> list[GradientPart]:
        scale = self.loss_scale()
        return [
            GradientPart(item.layer, self._own(local_part(item.parameter.grad)), self._sharded, scale, item)
            for item in items
            if item.parameter.grad is not None
        ]

    def _own(self, local: torch.Tensor) -> torch.Tensor:
        """What this rank tells of its shard: all of it, or, where groups hold the same, its group's share."""
        return self.places.told(local)

    def reducer(self) -> None:  # type: ignore[override]
        """As ``DdpReduced.reducer``: there is none."""
        return

    def rank_state(self) -> RankState:
        """As ``Checkpointable.rank_state``."""
        scaler = self._scaler if self._scaler.is_enabled() else None
        return self.places.rank_state(self._module, self.originals, self._optimizer, scaler)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """As ``Gathering.gathered``."""
        if self._entered:
            yield
            return
        self._entered = True
        try:
            with gathered(self._module, no_reshard=self.spec.plan.no_reshard):
                yield
        finally:
            self._entered = False

    def rerun(self, pieces: Sequence[Batch], seen: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """As ``Replayable.rerun``. Collective over all ranks, unless inside ``gathered``."""
        with self.gathered():
            return super().rerun(pieces, seen)

    def forward(self, batch: Batch) -> Any:
        """As ``Evaluating.forward``. Collective over all ranks, unless inside ``gathered``."""
        with self.gathered():
            return super().forward(batch)

    def evaluated(self, batch: Batch, *, outputs: bool = False) -> tuple[Any, LossTerm] | None:
        """As ``Validating.evaluated``. Collective over all ranks, unless inside ``gathered``."""
        with self.gathered():
            return super().evaluated(batch, outputs=outputs)

    @contextmanager
    def evaluation(self) -> Iterator[torch.nn.Module]:
        """As ``Validating.evaluation``. Collective over all ranks, unless inside ``gathered``."""
        with self.gathered(), super().evaluation() as model:
            yield model

    def close(self) -> None:
        if hasattr(self, "model"):
            self.norms.close()
            self._hooks.give_back()
            del self.model
