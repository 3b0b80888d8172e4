"""Training where every rank computes all layers for its share of the batch, as under DDP and FSDP2."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.parts import WeightMatrix
from workbench.engine.base.strategy import unmarked
from workbench.engine.base.workload import Workload
from workbench.engine.communication.checks import remark_on_exchange
from workbench.engine.data.batches import samples_in
from workbench.engine.frameworks.torch.native import NativeStrategy
from workbench.engine.frameworks.torch_common.batch_norm import BatchNorms
from workbench.engine.frameworks.torch_common.batches import check_trainable, to_device
from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.engine.frameworks.torch_common.gradient_hooks import GradientHooks, remark_on_module_hooks
from workbench.engine.frameworks.torch_common.losses.average import LossAverage
from workbench.engine.frameworks.torch_common.losses.terms import LossTerm
from workbench.engine.frameworks.torch_common.losses.whole_model import EvaluatedWhole, WholeModel
from workbench.engine.frameworks.torch_common.parameters import (
    ModelNames,
    RankParameter,
    rank_parameters,
    share_of_replicas,
)
from workbench.engine.frameworks.torch_common.phase_marks import mark_what_follows
from workbench.engine.frameworks.torch_common.rerun import rerun
from workbench.engine.frameworks.torch_common.trained import trained
from workbench.engine.frameworks.torch_common.weight_changes import FrozenByCell, check_changed_alike, versions_of
from workbench.engine.state.layout import Originals


class WholeModelStrategy(EvaluatedWhole, NativeStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    #: ``model(compute)`` is a forward pass whose gradients are reduced
    model: Any

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        check_trainable(spec, workload)

    def prepare(self, workload: Workload) -> None:
        self.workload = workload
        self.device = rank_device()
        self._module = trained(workload).to(self.device)
        self._whole = self._make_whole()
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
        unused = remark_on_exchange(self.spec)
        if unused:
            self.tell("algorithm", unused)
        self._names = ModelNames(self._module, workload.optimizer)
        self._distribute()
        self.average = self._make_average()
        self._begin()

    def _make_whole(self) -> Any:
        return WholeModel(self.workload, self._module, self.device, self.spec.precision)

    def _make_average(self) -> LossAverage:
        return LossAverage(self.mesh, self.device, self.tell)

    @abstractmethod
    def _distribute(self) -> None:
        """Spread the model over the ranks: make ``model``, and the parts that ``NativeStrategy`` names."""

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
        return self._end_gradients(loss)

    def _piece(self, piece: Batch, number: int, is_last: bool) -> torch.Tensor:
        batch = to_device(contents(piece), self.device)
        self.mark("forward", number)
        items = self._versioned()
        before = versions_of(items)
        with self.norms.around(piece):
            term = self.model(lambda: self._term(batch, samples_in(piece)))
        self._frozen_by_cell.check()
        self._check_weights(items, before, "loss_fn or the model")
        loss = self.average.weighted(term, samples_in(piece), lambda: self.mark("communication", number))
        self._reduction.looks_at(loss)
        self.mark("backward", number)
        if is_last and self.mark is not unmarked and not self._reduction.afterwards:
            mark_what_follows(loss, self.mark, number)
        self._backward(loss)
        return loss.detach()

    def _backward(self, loss: torch.Tensor) -> None:
        """The backward pass of a piece, whose weighted loss this is."""
        self._scaler.scale(loss).backward()

    def _versioned(self) -> list[RankParameter]:
        """The weights that a forward pass computes with."""
        return self._held

    def _check_weights(self, items: list[RankParameter], before: list[int], what: str) -> None:
        """Refuse what was changed of the weights where ranks would part."""
        if self.average.is_new and self.mesh.dp * self.mesh.cp > 1 and not self.spec.recipe:
            check_changed_alike(items, before, self.device, what)

    def _term(self, batch: Batch, samples: int) -> LossTerm:
        tell = self.tell if self.average.is_new else None
        return self._whole.term(batch, samples, tell, self.average.division)

    def rerun(self, pieces: Sequence[Batch], seen: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """As ``Replayable.rerun``."""
        with self.norms.recording():
            return rerun(self._module, pieces, self._again, seen, loss_scale=self.loss_scale())

    def _again(self, piece: Batch) -> torch.Tensor:
        with self.norms.around(piece):
            term = self._term(to_device(contents(piece), self.device), samples_in(piece))
        return self.average.again(term, samples_in(piece))


class ReplicatedStrategy(WholeModelStrategy):
    """Training where every rank computes with all of the weights. ``_distribute`` calls ``_share_out``."""

    #: parameters that this rank tells of where all replicas hold the same: of all of them exactly one does
    _told: list[RankParameter]

    def _share_out(self) -> None:
        self._held = rank_parameters(self._module, self._names)
        turns = {layer: turn for turn, layer in enumerate(self._names.layers)}
        self._told = share_of_replicas(self._held, turns, self.mesh, self.coordinates)

    @contextmanager
    def editing(self, name: str) -> Iterator[None]:
        before = versions_of(self._held)
        yield
        self._check_weights(self._held, before, name)

    def weight_matrices(self) -> list[WeightMatrix]:
        """As ``Shaped.weight_matrices``."""
        return [matrix for item in self._told if (matrix := item.matrix()) is not None]

    def sum_over_shards(self, values: torch.Tensor) -> None:
        """As ``Shaped.sum_over_shards``: every rank has the whole model."""

    def output_sharding(self, module: torch.nn.Module) -> str | None:
        """As ``Inspectable.output_sharding``: every rank has the whole model."""
        return ""
