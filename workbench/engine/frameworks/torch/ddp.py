"""torch's ``DistributedDataParallel``: each rank holds the whole model, and gradients are averaged over the ranks.

Mixed precision is torch's autocast over fp32 weights, in fp16 with a gradient scaler.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from workbench.core.config import TrainSpec
from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.generators import ModuleGenerator
from workbench.engine.base.parts import BatchObserver, Comparison, GradientPart, PartNorms, WeightPart
from workbench.engine.base.strategy import Strategy, unmarked
from workbench.engine.base.workload import Workload
from workbench.engine.data.batches import samples_in
from workbench.engine.frameworks.torch_common.batch_norm import BatchNorms
from workbench.engine.frameworks.torch_common.batches import check_trainable, to_device
from workbench.engine.frameworks.torch_common.ddp_reduction import DdpReduction
from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.engine.frameworks.torch_common.gradient_hooks import GradientHooks, remark_on_module_hooks
from workbench.engine.frameworks.torch_common.losses.average import LossAverage
from workbench.engine.frameworks.torch_common.losses.terms import LossTerm, Number
from workbench.engine.frameworks.torch_common.losses.whole_model import WholeModel
from workbench.engine.frameworks.torch_common.optimizer_state import weight_part
from workbench.engine.frameworks.torch_common.parameters import (
    ModelNames,
    RankParameter,
    rank_parameters,
    share_of_replicas,
)
from workbench.engine.frameworks.torch_common.phase_marks import mark_what_follows
from workbench.engine.frameworks.torch_common.rerun import rerun
from workbench.engine.frameworks.torch_common.state_locator import StateLocator
from workbench.engine.frameworks.torch_common.trained import trained
from workbench.engine.frameworks.torch_common.weight_changes import FrozenByCell, check_changed_alike, versions_of
from workbench.engine.state.layout import Originals, RankState
from workbench.engine.watch.torch import tensor_statistics as figures

#: first loss scale in fp16; torch's 2**16 skips so many steps that short runs learn less
FIRST_SCALE = 2.0**10


class DdpStrategy(Strategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        check_trainable(spec, workload)

    def prepare(self, workload: Workload) -> None:
        self.workload = workload
        self.device = rank_device()
        self._module = trained(workload).to(self.device)
        self._whole = WholeModel(workload, self._module, self.device, self.spec.precision)
        self.originals = Originals(self._module)
        self.norms = BatchNorms(
            self._module,
            replicas=self.mesh.dp,
            synchronised=self.spec.plan.sync_batchnorm,
            accumulate=self.spec.accumulate,
        )
        self.norms.tell_on(self.rank, self.tell)
        self._optimizer = workload.optimizer
        self._frozen_by_cell = FrozenByCell(self._module, workload.optimizer)
        self._hooks = GradientHooks()
        self._hooks.take(self._module.parameters())
        remark = remark_on_module_hooks(self.spec, workload.model)
        if remark:
            self.tell("module_hooks", remark)
        self._names = ModelNames(self._module, workload.optimizer)
        self._distribute()
        self.average = LossAverage(self.mesh, self.device)
        self._scaler = self._make_scaler()
        self._clip = self.spec.clip
        self._frozen: frozenset[str] = frozenset()
        self._part_norms: PartNorms | None = None

    def _make_scaler(self) -> Any:
        is_fp16 = self.spec.precision == "fp16"
        return torch.amp.GradScaler(self.device.type, init_scale=FIRST_SCALE, enabled=is_fp16)

    def _distribute(self) -> None:
        """Spread the model over the ranks; ``model(compute)`` is then a forward pass whose gradients are reduced."""
        self._held = rank_parameters(self._module, self._names)
        turns = {layer: turn for turn, layer in enumerate(self._names.layers)}
        self._mine = share_of_replicas(self._held, turns, self.mesh, self.coordinates)
        self._shares = {(item.layer, item.sharded) for item in self._mine}
        # only a recipe is known to use all of its parameters in every step
        self.model: Any = DistributedDataParallel(self._module, find_unused_parameters=not self.spec.recipe)
        self._reduction: Any = DdpReduction(self.model, afterwards=not self.spec.recipe)

    def forward_backward(self, pieces: Sequence[Batch]) -> torch.Tensor:
        self._part_norms = None
        self.average.begin(pieces)
        losses = []
        for index, piece in enumerate(pieces):
            is_last = index == len(pieces) - 1
            number = index if len(pieces) > 1 else -1
            self.mark("transfer", number)
            with self._reduction.around(is_last=is_last):
                losses.append(self._piece(piece, number, is_last))
        loss = torch.stack(losses).sum()
        self._reduction.finish()
        factor = self.average.finish()
        if factor is not None:
            loss *= factor
            torch._foreach_mul_(self._gradients(), factor)
        self._hooks.run(self.loss_scale())
        for item in self._held if self._frozen else ():
            if item.layer in self._frozen:
                item.parameter.grad = None
        return loss

    def _gradients(self) -> list[torch.Tensor]:
        return [item.parameter.grad for item in self._held if item.parameter.grad is not None]

    def _piece(self, piece: Batch, number: int, is_last: bool) -> torch.Tensor:
        batch = to_device(contents(piece), self.device)
        self.mark("forward", number)
        items = self._versioned()
        before = versions_of(items)
        with self.norms.around(piece):
            term = self.model(lambda: self._term(batch))
        self._frozen_by_cell.check()
        self._check_weights(items, before)
        loss = self.average.weighted(term, samples_in(piece), lambda: self.mark("communication", number))
        self._reduction.looks_at(loss)
        self.mark("backward", number)
        if is_last and self.mark is not unmarked and not self._reduction.afterwards:
            mark_what_follows(loss, self.mark, number)
        self._scaler.scale(loss).backward()
        return loss.detach()

    def _versioned(self) -> list[RankParameter]:
        """The weights that a forward pass computes with."""
        return self._held

    def _check_weights(self, items: list[RankParameter], before: list[int]) -> None:
        """Refuse what the forward pass changed of the weights where ranks would part."""
        if self.average.is_new and self.mesh.dp > 1 and not self.spec.recipe:
            check_changed_alike(items, before, self.device)

    def _term(self, batch: Batch) -> LossTerm:
        return self._whole.term(batch, self.tell if self.average.is_new else None)

    def step(self) -> bool:
        norm = self._global_norm() if self._clip > 0 else 0.0
        self._scaler.unscale_(self._optimizer)
        if self._clip > 0 and norm > self._clip:
            torch._foreach_mul_(self._gradients(), self._clip / (norm + 1e-6))
        before = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        return self._scaler.get_scale() >= before

    def _global_norm(self) -> float:
        total = self.grad_sq().clone()
        dist.all_reduce(total)
        return math.sqrt(total.item())

    def skip(self) -> None:
        self._optimizer.zero_grad()

    def grad_sq(self) -> torch.Tensor:
        """As ``Normed.grad_sq``: every rank has the whole gradient, and gives the layers whose turn it is."""
        if self._part_norms is None:
            self._part_norms = figures.part_norms(self._parts(self._mine), self.device)
        return self._part_norms.squared()

    def part_norms(self) -> PartNorms | None:
        """As ``Normed.part_norms``."""
        return self._part_norms

    def set_clip(self, clip: float) -> None:
        """As ``Normed.set_clip``."""
        self._clip = clip

    def loss_scale(self) -> float:
        """As ``LossScaled.loss_scale``."""
        return self._scaler.get_scale()

    def watch_batches(
        self, observer: BatchObserver, layers: Collection[str] | None = None, *, keep: bool = False
    ) -> AbstractContextManager[None]:
        """As ``Watchable.watch_batches``."""
        items = [item for item in self._chosen(self._held, layers) if item.layer not in self._frozen]
        return self._reduction.watching(items, self._parts, self.aside(observer), keep=keep)

    def local_factor(self) -> Number:
        """As ``Watchable.local_factor``."""
        return self.average.factor

    def reduced_gradients(self, layers: Collection[str] | None = None, *, all_held: bool = False) -> list[GradientPart]:
        """As ``Watchable.reduced_gradients``."""
        return self._parts(self._chosen(self._held if all_held else self._mine, layers))

    def reports(self, layer: str, sharded: str) -> bool:
        """As ``Watchable.reports``."""
        return (layer, sharded) in self._shares

    def compare(self, parts: Sequence[GradientPart]) -> Comparison | None:
        """As ``Watchable.compare``: by now ``p.grad`` is the reduced gradient."""
        return Comparison("exact", [[(part.tensor, part.source.reduced())] for part in parts])

    def layer_sizes(self) -> dict[str, int]:
        """As ``Watchable.layer_sizes``."""
        return self._names.sizes

    def weights(self, layers: Collection[str] | None = None) -> list[WeightPart]:
        """As ``Watchable.weights``."""
        return [weight_part(item, item.parameter, self._optimizer) for item in self._chosen(self._mine, layers)]

    @staticmethod
    def _chosen(items: Sequence[RankParameter], layers: Collection[str] | None) -> list[RankParameter]:
        return [item for item in items if layers is None or item.layer in layers]

    def _parts(self, items: Sequence[RankParameter]) -> list[GradientPart]:
        scale = self.loss_scale()
        return [
            GradientPart(item.layer, item.real(item.parameter.grad), "", scale, item)
            for item in items
            if item.parameter.grad is not None
        ]

    def reducer(self) -> DistributedDataParallel:
        """As ``DdpReduced.reducer``."""
        return self.model

    def rank_state(self) -> RankState:
        """As ``Checkpointable.held``."""
        state = StateLocator(module=self._module, originals=self.originals, mesh=self.mesh, here=self.coordinates)
        return state.rank_state(self._optimizer, scaler=self._scaler if self._scaler.is_enabled() else None)

    @property
    def module(self) -> torch.nn.Module:
        """As ``Replayable.module``."""
        return self._module

    def output_sharding(self, module: torch.nn.Module) -> str | None:
        """As ``Inspectable.output_sharding``: every rank has the whole model."""
        return ""

    def generators(self) -> Mapping[str, ModuleGenerator]:
        """As ``Replayable.generators``: torch keeps none in modules."""
        return {}

    def rerun(self, pieces: Sequence[Batch], seen: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """As ``Replayable.rerun``."""
        with self.norms.recording():
            return rerun(self._module, pieces, self._again, seen, loss_scale=self.loss_scale())

    def _again(self, piece: Batch) -> torch.Tensor:
        with self.norms.around(piece):
            term = self._term(to_device(contents(piece), self.device))
        return self.average.again(term, samples_in(piece))

    def layers(self) -> list[str]:
        """As ``Freezable.layers``."""
        return self._names.layers

    def set_frozen(self, layers: Collection[str]) -> None:
        """As ``Freezable.set_frozen``."""
        self._frozen = frozenset(layers)

    def forward(self, batch: Batch) -> Any:
        """As ``Evaluating.forward``."""
        return self._whole.forward(batch)

    def evaluated(self, batch: Batch, *, outputs: bool = False) -> tuple[Any, LossTerm] | None:
        """As ``Validating.evaluated``."""
        return self._whole.evaluated(batch, outputs=outputs)

    def evaluation(self) -> AbstractContextManager[torch.nn.Module]:
        """As ``Validating.evaluation``."""
        return self._whole.evaluation()

    def close(self) -> None:
        if hasattr(self, "model"):
            self.norms.close()
            # Kept until DDP's reducer is gone: were its reference the last one, the group would end while this thread
            # has the interpreter lock, and wait for a gloo thread that waits for the lock.
            group = self.model.process_group
            self._hooks.give_back()
            del self.model
            gc.collect()
            del group
