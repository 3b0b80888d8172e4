"""Data parallelism by Megatron's DDP and its optimizer, of models that Megatron computes by its own GPTModel.

The loop, the batches, the loss and the optimizer's rule are the trainer's and the user's. Megatron computes logits,
adds gradients up in its buffers and reduces them there; its optimizer, around the user's, clips them and steps.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import _allreduce_word_embedding_grads
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer.optimizer import FP32Optimizer

from workbench.core.config import TrainSpec
from workbench.engine.base.parts import BatchObserver, WeightMatrix
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.megatron.buffers import GradientBuffers
from workbench.engine.frameworks.megatron.checks import check, family_of
from workbench.engine.frameworks.megatron.forward import Computed, refuse_part
from workbench.engine.frameworks.megatron.models import Split, gpt_model
from workbench.engine.frameworks.megatron.weights import SharedWeights, has_tied
from workbench.engine.frameworks.torch.whole_model import ReplicatedStrategy
from workbench.engine.frameworks.torch_common.exchange import all_reduce_uncounted
from workbench.engine.frameworks.torch_common.local_gradients import PartsOf
from workbench.engine.frameworks.torch_common.losses.terms import LossTerm
from workbench.engine.frameworks.torch_common.losses.whole_model import AUTOCAST_TYPES, WholeModel
from workbench.engine.frameworks.torch_common.parameters import RankParameter, rank_parameters, share_of_replicas
from workbench.engine.frameworks.torch_common.state_locator import StateLocator
from workbench.engine.frameworks.torch_common.weight_changes import check_unchanged, versions_of
from workbench.engine.state.layout import RankState


class MegatronStrategy(ReplicatedStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        super().check(spec, workload)
        check(spec, workload)

    def _distribute(self) -> None:
        model = self.workload.model
        family = family_of(model)
        here, mesh = self.coordinates, self.mesh
        split = Split(tp=mesh.tp, tp_rank=here.tp, pp=mesh.pp, stage=here.pp)
        order = "tp-cp-ep-pp-dp"  # of the ranks of this project
        parallel_state.initialize_model_parallel(mesh.tp, mesh.pp, order=order, create_gloo_process_groups=False)
        dtype = AUTOCAST_TYPES.get(self.spec.precision, torch.float32)
        gpt = gpt_model(family, model, tied=has_tied(model), dtype=dtype, split=split)
        gpt.to(self.device, dtype)  # as its Float16Module does
        self._weights = SharedWeights(family, model, gpt, split, has_copies=dtype != torch.float32)
        ddp_config = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
        self._ddp = DistributedDataParallel(gpt.config, ddp_config, gpt)
        self._weights.share(self._optimizer)
        self._whole = WholeModel(self.workload, self._module, self.device, "fp32")  # weights are cast, and nothing else
        is_cut = lambda parameter: not self._weights.place(parameter).is_whole  # noqa: E731
        self._held = rank_parameters(
            self._module, self._names, tp=here.tp, is_sharded=is_cut, foreign=self._weights.foreign
        )
        turns = {layer: turn for turn, layer in enumerate(self._names.layers)}
        self._told = share_of_replicas(self._held, turns, self.mesh, self.coordinates)
        self._mine = self._told
        self._shares = {(item.layer, item.sharded) for item in self._mine}
        body: Any = model.base_model
        self._guard = body.register_forward_pre_hook(refuse_part)
        takes_positions = family.positions != "rope"
        model.forward = Computed(model, self._ddp, gpt, takes_positions=takes_positions, is_last=split.is_last)
        config = OptimizerConfig(lr=None, clip_grad=0.0)
        self._stepper = FP32Optimizer(self._optimizer, config, lambda *_: None)
        self._stepper.grad_stats_parallel_group = parallel_state.get_model_parallel_group()
        self._stepper.tp_group = parallel_state.get_tensor_model_parallel_group()
        self._reduction = _BufferReduction(self._ddp, self._held, self._weights, lambda: self.mark("communication", -1))
        self._framework_norm, self._wants_norm = math.nan, False
        self.model = self._run

    def _run(self, compute: Callable[[], LossTerm]) -> LossTerm:
        found: LossTerm = self._module(compute)
        return found

    def step(self) -> bool:
        is_scaled = self._scaler.is_enabled()
        overflowed = is_scaled and not self._global_norm() < math.inf
        self._framework_norm = math.nan
        if not overflowed:
            if is_scaled:
                torch._foreach_mul_(self._gradients(), 1 / self._scaler.get_scale())
            self._update()
        self._scaler.update(overflowed=overflowed)
        self.skip()
        return not overflowed

    def _update(self) -> None:
        """Megatron clips gradients, and lets the optimizer step."""
        self._stepper.config.clip_grad = self._clip
        norm = self._stepper.get_grad_norm() if self._wants_norm and not self._clip else None
        _, clipped_by, _ = self._stepper.step()
        norm = clipped_by if norm is None else norm
        self._framework_norm = math.nan if norm is None else float(norm)
        self._weights.publish()

    def skip(self) -> None:
        self._stepper.zero_grad()
        self._ddp.zero_grad_buffer()

    def _check_weights(self, items: list[RankParameter], before: list[int], what: str) -> None:
        if self._weights.has_copies or self._weights.is_cut:
            check_unchanged(items, before, self.spec.plan.plugin, what)
        else:
            super()._check_weights(items, before, what)

    @contextmanager
    def editing(self, name: str) -> Iterator[None]:
        before = versions_of(self._held)
        yield
        if not self._weights.is_cut:
            super()._check_weights(self._held, before, name)
        self._weights.publish()

    def framework_norm(self) -> float:
        """As ``NormReporting.framework_norm``."""
        return self._framework_norm

    def watch_framework_norm(self, watch: bool) -> None:
        """As ``NormReporting.watch_framework_norm``."""
        self._wants_norm = watch

    def weight_matrices(self) -> list[WeightMatrix]:
        """As ``Shaped.weight_matrices``, in the shapes of the user's model."""
        found = []
        for item in self._told:
            place = self._weights.place(item.parameter)
            split = None if place.is_whole else place.dim
            matrix = item.matrix_of(item.parameter.detach().reshape(place.part_shape), split)
            found.extend([matrix] if matrix is not None else [])
        return found

    def sum_over_shards(self, values: torch.Tensor) -> None:
        """As ``Shaped.sum_over_shards``: over the tensor-parallel ranks."""
        if self._weights.is_cut:
            all_reduce_uncounted(values, group=parallel_state.get_tensor_model_parallel_group())

    def rank_state(self) -> RankState:
        """As ``Checkpointable.rank_state``."""
        state = StateLocator(
            module=self._module,
            originals=self.originals,
            mesh=self.mesh,
            here=self.coordinates,
            places=self._weights.places,
            foreign={id(parameter) for parameter in self._weights.foreign},
        )
        scaler = self._scaler if self._scaler.is_enabled() else None
        found, copies = state.rank_state(self._optimizer, scaler=scaler), self._weights.copies()
        found.slots = [replace(slot, copies=copies[slot.name]) for slot in found.slots]
        return found

    def close(self) -> None:
        if hasattr(self, "_stepper"):
            self.norms.close()
            self._hooks.give_back()
            self._guard.remove()
            del self.workload.model.forward
            self._weights.close(self._optimizer)
            del self._ddp, self._stepper, self._reduction, self._weights, self.model
            parallel_state.destroy_model_parallel()
            gc.collect()


class _BufferReduction:
    """Reduces the gradients in the buffers of ``ddp`` after backward, and gives ``items`` theirs, as views. ``begins``:
    called before ranks wait for each other."""

    #: gradients are reduced after backward
    afterwards = True

    def __init__(
        self, ddp: Any, items: Sequence[RankParameter], weights: SharedWeights, begins: Callable[[], object]
    ) -> None:
        self._ddp, self._items, self._weights, self._begins = ddp, items, weights, begins
        self._buffers = GradientBuffers(ddp)
        self._around: Callable[[], AbstractContextManager[None]] = nullcontext

    def around(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Around forward and backward of one piece: nothing is reduced there."""
        return nullcontext()

    def looks_at(self, loss: torch.Tensor) -> None:
        """Whatever the graph of a loss holds, its gradients are complete after backward."""

    def finish(self) -> None:
        """Reduce. Collective. What a loss computes of weights beside the model, such as a penalty, is in ``.grad`` of
        the user's parameters, and is added."""
        for item in self._items:
            beside, gradient = item.parameter.grad, self._weights.gradient(item.parameter)
            if beside is not None:
                gradient.add_(beside)
            item.parameter.grad = gradient if item.parameter.requires_grad else None
        self._begins()
        embedding, stages = parallel_state.get_embedding_group(check_initialized=False), self._ddp.pp_group
        _allreduce_word_embedding_grads([self._ddp], self._ddp.config, embedding, stages)
        with self._around():
            self._ddp.finish_grad_sync()

    @contextmanager
    def watching(
        self, items: Sequence[RankParameter], parts_of: PartsOf, show: BatchObserver, *, keep: bool
    ) -> Iterator[None]:
        """Show the complete local gradients of ``items`` before they are reduced, those of a bucket in one call."""
        self._around = partial(self._buffers.before_reduction, partial(self._look, items, parts_of, show, keep))
        try:
            yield
        finally:
            self._around = nullcontext

    def _look(
        self,
        items: Sequence[RankParameter],
        parts_of: PartsOf,
        show: BatchObserver,
        keep: bool,
        reduced: Collection[torch.Tensor],
    ) -> None:
        parts = parts_of([item for item in items if self._weights.whole(item.parameter) in reduced])
        if parts:
            show([replace(part, tensor=part.tensor.clone()) for part in parts] if keep else parts)
