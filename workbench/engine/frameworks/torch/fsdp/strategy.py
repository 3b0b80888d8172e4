"""torch's FSDP2: parameters, gradients and optimizer state are split over the data-parallel ranks.

Each block's parameters are gathered when it computes. With ``tp`` layers are cut over tensor-parallel ranks first. With
``replicate`` the ranks form groups that each hold all shards (HSDP). In mixed precision ranks gather and compute in
bf16 or fp16, over fp32 shards, and reduce in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch.distributed.device_mesh import init_device_mesh

from workbench.core.config import TrainSpec
from workbench.engine.base.batch import Batch
from workbench.engine.base.parts import BatchObserver, Comparison, GradientPart, WeightMatrix, WeightPart
from workbench.engine.base.tensor import local_part
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch.fsdp import checks
from workbench.engine.frameworks.torch.fsdp.local_gradients import before_reduce_scatter
from workbench.engine.frameworks.torch.fsdp.reduction import FsdpReduction
from workbench.engine.frameworks.torch.fsdp.sharding import (
    blocks_of,
    gathered,
    one_by_one,
    replace_parameters,
    shard,
    sharded_modules,
    sharded_parameters,
)
from workbench.engine.frameworks.torch.fsdp.shards import ShardPlaces
from workbench.engine.frameworks.torch.gathering import GatheringStrategy
from workbench.engine.frameworks.torch.tensor_parallel.parallelize import Cut, output_sharding, parallelize
from workbench.engine.frameworks.torch_common.exchange import all_reduce_uncounted
from workbench.engine.frameworks.torch_common.losses.terms import LossTerm
from workbench.engine.frameworks.torch_common.optimizer_state import moments_of
from workbench.engine.frameworks.torch_common.parameters import RankParameter, rank_parameters
from workbench.engine.frameworks.torch_common.weight_changes import check_unchanged
from workbench.engine.state.layout import RankState


class FsdpStrategy(GatheringStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        super().check(spec, workload)
        checks.check(spec, workload)

    def _distribute(self) -> None:
        plan = self.spec.plan
        before = {self.originals.name(name): parameter for name, parameter in self._module.named_parameters()}
        sizes = (plan.replicate, self.mesh.dp // plan.replicate, self.mesh.tp)
        mesh = init_device_mesh(self.device.type, sizes, mesh_dim_names=("replicate", "shard", "tp"))
        cuts: dict[str, Cut] = {}
        if self.mesh.tp > 1:
            cuts = parallelize(self._module, checks.tensor_plan(self.spec, self.workload), mesh["tp"])
            one_by_one(self._optimizer)
        self.places = ShardPlaces(
            self.originals.shapes,
            self.mesh,
            self.coordinates,
            replicate=plan.replicate,
            cuts={self.originals.name(name): cut for name, cut in cuts.items()},
        )
        shard(
            self._module,
            blocks_of(self._module),
            mesh["replicate", "shard"] if plan.replicate > 1 else mesh["shard"],
            precision=self.spec.precision,
            no_reshard=plan.no_reshard,
            offload=plan.offload,
        )
        after = {self.originals.name(name): parameter for name, parameter in self._module.named_parameters()}
        replace_parameters(self._optimizer, before, after, lambda name, whole: self.places.place(name).of(whole))
        self._parameter_names = {id(parameter): name for name, parameter in after.items()}
        self._held = rank_parameters(self._module, self._names)
        self._axes = {id(item.parameter): self.places.axes(self._name(item)) for item in self._held}
        turns = {layer: turn for turn, layer in enumerate(self._names.layers)}  # the parts of a layer are told together
        self._mine = [item for item in self._held if self.places.is_counted_here(self._name(item), turns[item.layer])]
        self._shares = {(item.layer, self._axes[id(item.parameter)]) for item in self._mine}
        self.model = self._module
        sharded_modules(self._module)[0]._get_fsdp_state()._lazy_init()  # before a block computes by itself
        within = mesh["shard"] if self.mesh.tp == 1 else mesh["shard", "tp"]._flatten("within")
        self._within_group = within.get_group()
        self._reduction = FsdpReduction(self._module, self.device, may_differ=self.mesh.dp > 1 and not self.spec.recipe)

    def _name(self, item: RankParameter) -> str:
        return self._parameter_names[id(item.parameter)]

    def _versioned(self) -> list[RankParameter]:
        """The gathered parameters, of which the forward pass computes: those that were gathered before."""
        whole = {id(each.sharded_param): each for each in sharded_parameters(self._module)}
        found = [(item, whole[id(item.parameter)]) for item in self._held]
        return [
            replace(item, parameter=each._unsharded_param) for item, each in found if hasattr(each, "_unsharded_param")
        ]

    def _check_weights(self, items: list[RankParameter], before: list[int], what: str) -> None:
        check_unchanged(items, before, self.spec.plan.plugin, what)

    def _term(self, batch: Batch, samples: int) -> LossTerm:
        term = super()._term(batch, samples)
        # FSDP2 puts a hook on what the forward pass returns, and warns of one on a view
        return term if term.value._base is None else replace(term, value=term.value.clone())

    def watch_batches(
        self, observer: BatchObserver, layers: Collection[str] | None = None, *, keep: bool = False
    ) -> AbstractContextManager[None]:
        """As ``Watchable.watch_batches``."""
        items = [item for item in self._chosen(self._held, layers) if item.layer not in self._frozen]
        scale = self.loss_scale()

        def part_of(item: RankParameter, gradient: torch.Tensor) -> GradientPart:
            sharded = "tp" if "tp" in self._axes[id(item.parameter)] else ""
            return GradientPart(item.layer, gradient, sharded, scale, item)

        by_id = {id(item.parameter): item for item in items}
        return before_reduce_scatter(by_id, part_of, self.aside(observer))

    def compare(self, parts: Sequence[GradientPart]) -> Comparison | None:
        """As ``Watchable.compare``: this rank has a slice of the reduced gradient."""
        if self.mesh.tp > 1 and self.mesh.dp > 1:
            return None  # a slice of a tensor-parallel part
        pairs = []
        for part in parts:
            reduced = self._own(local_part(part.source.parameter.grad))
            pairs.append([(self._own(self.places.rows_of(part.tensor)), reduced)])
        return Comparison("exact" if self.mesh.dp == 1 else "slice", pairs)

    def output_sharding(self, module: torch.nn.Module) -> str | None:
        """As ``Inspectable.output_sharding``."""
        return output_sharding(module) if self.mesh.tp > 1 else ""

    def weights(self, layers: Collection[str] | None = None) -> list[WeightPart]:
        """As ``Watchable.weights``."""
        found = []
        for item in self._chosen(self._mine, layers):
            moments = moments_of(self._optimizer, item.parameter)
            first, second = [None if moment is None else self._own(local_part(moment)) for moment in moments]
            weight = self._own(local_part(item.parameter.detach()))
            found.append(WeightPart(item.layer, weight, self._axes[id(item.parameter)], (first, second)))
        return found

    def weight_matrices(self) -> list[WeightMatrix]:
        """As ``Shaped.weight_matrices``: of the first of the groups of ranks that hold the same. A weight that is split
        both ways, by tensor parallelism along its columns, is left out."""
        if not self.places.is_first_group:
            return []
        found, left_out = [], []
        mine = {id(item) for item in self._mine}
        for item in self._held:
            dims, local = self.places.split_dims(self._name(item)), local_part(item.parameter.detach())
            if len(dims) > 1:
                left_out.append(item.layer)
            elif dims or id(item) in mine:
                # where tensor-parallel ranks have the same rows, one of them counts them
                found.append(item.matrix_of(local if id(item) in mine else local[:0], next(iter(dims), None)))
        if left_out and self.rank == 0:
            text = (
                f"no singular values of {left_out[0]} and {len(left_out) - 1} more weights, which are split both ways"
            )
            self.tell("spectra", text)
        return [matrix for matrix in found if matrix is not None]

    def sum_over_shards(self, values: torch.Tensor) -> None:
        """As ``Shaped.sum_over_shards``: over the ranks that hold one copy of the model."""
        all_reduce_uncounted(values, group=self._within_group)

    def reduced_gradients(self, layers: Collection[str] | None = None, *, all_held: bool = False) -> list[GradientPart]:
        """As ``Watchable.reduced_gradients``: with ``all_held`` whole shards, which every group of ranks has."""
        if all_held:
            return self._parts(self._chosen(self._held, layers), own=lambda shard: shard)
        return super().reduced_gradients(layers)

    def _parts(
        self, items: Sequence[RankParameter], *, own: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> list[GradientPart]:
        scale, told = self.loss_scale(), own or self._own
        return [
            GradientPart(item.layer, told(local_part(item.parameter.grad)), self._axes[id(item.parameter)], scale, item)
            for item in items
            if item.parameter.grad is not None
        ]

    def _own(self, local: torch.Tensor) -> torch.Tensor:
        """What this rank tells of its shard: all of it, or, where groups hold the same, its group's share."""
        return self.places.told(local)

    def rank_state(self) -> RankState:
        """As ``Checkpointable.rank_state``."""
        scaler = self._scaler if self._scaler.is_enabled() else None
        return self.places.rank_state(self._module, self.originals, self._optimizer, scaler)

    def _gather(self) -> AbstractContextManager[None]:
        return gathered(self._module, no_reshard=self.spec.plan.no_reshard)

    def close(self) -> None:
        if hasattr(self, "model"):
            self.norms.close()
            self._hooks.give_back()
            del self.model
