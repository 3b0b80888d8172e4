"""Training with Colossal-AI's plugins: ddp, zero1, zero2, gemini and hybrid (tensor, pipeline and data parallel)."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from workbench.core.config import TrainSpec
from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.generators import ModuleGenerator
from workbench.engine.base.parts import BatchObserver, Comparison, GradientPart, PartNorms, WeightMatrix, WeightPart
from workbench.engine.base.strategy import Strategy, unmarked
from workbench.engine.base.workload import Workload
from workbench.engine.communication.checks import check_exchange, remark_on_exchange
from workbench.engine.data.batches import samples_in
from workbench.engine.frameworks.colossal import repairs
from workbench.engine.frameworks.colossal.optimizers import check_distributed, is_distributed
from workbench.engine.frameworks.colossal.output_sharding import output_sharding
from workbench.engine.frameworks.colossal.pipeline_parallel.driving import (
    NamedBatches,
    forget_shapes_if_new,
    forward_only,
)
from workbench.engine.frameworks.colossal.pipeline_parallel.phase_marks import mark_stages
from workbench.engine.frameworks.colossal.plugins import plan_class
from workbench.engine.frameworks.colossal.policies import check_split
from workbench.engine.frameworks.colossal.split_policy import lost_arguments
from workbench.engine.frameworks.colossal.zero.checks import check_gemini
from workbench.engine.frameworks.torch_common.batch_norm import BatchNorms
from workbench.engine.frameworks.torch_common.batches import (
    call_model,
    check_trainable,
    evaluating,
    first_output,
    outputs_seen,
    to_device,
)
from workbench.engine.frameworks.torch_common.exchange import all_reduce_uncounted
from workbench.engine.frameworks.torch_common.gradient_hooks import check_hooks, remark_on_module_hooks
from workbench.engine.frameworks.torch_common.losses.average import LossAverage
from workbench.engine.frameworks.torch_common.losses.calls import Number
from workbench.engine.frameworks.torch_common.losses.terms import (
    LossTerm,
    count_of_models_labels,
    expected_labels,
    loss_term,
)
from workbench.engine.frameworks.torch_common.optimizer_checks import check_parts
from workbench.engine.frameworks.torch_common.phase_marks import mark_what_follows
from workbench.engine.frameworks.torch_common.rerun import rerun, undone
from workbench.engine.frameworks.torch_common.trained import trained, users_model
from workbench.engine.frameworks.torch_common.weight_changes import check_changed_alike, check_unchanged, versions_of
from workbench.engine.frameworks.torch_common.zero.flat_parameters import check_parameters
from workbench.engine.state.layout import RankState
from workbench.engine.watch.torch import tensor_statistics as figures
from workbench.errors import ConfigError

#: plugins whose optimizer updates slices of fp32 copies
_SLICED = ("zero1", "zero2", "gemini")


class ColossalStrategy(Strategy):
    """One of Colossal-AI's plugins. Loss, gradients and updates are those of one process with the global batch."""

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        check_trainable(spec, workload)
        check_exchange(spec, workload)
        if spec.plan.plugin == "hybrid" or spec.plan.tp * spec.plan.pp > 1:
            check_split(workload.model, spec)
        if spec.plan.pp > 1 and workload.pipeline_split:
            raise ConfigError(
                "Colossal-AI chooses the layers of each pipeline stage by itself: leave pipeline_split out, or use "
                "--framework torch",
                field="pipeline_split",
            )
        has_copies = spec.plan.plugin in _SLICED or (spec.plan.plugin == "hybrid" and spec.precision != "fp32")
        check_hooks(spec, trained(workload), workload.optimizer, has_copies=has_copies)
        if spec.plan.tp * spec.plan.pp > 1 and any(workload.optimizer.state.values()):
            raise ConfigError(
                "the optimizer has state already, as the cell stepped it or loaded its state: --tp and --pp split "
                "weights only. Use --plugin ddp, zero1 or zero2, or make the optimizer anew",
                field="optimizer",
            )
        has_slices = spec.plan.plugin in _SLICED and spec.plan.mesh.dp > 1
        check_distributed(workload.optimizer, spec.plan.plugin)
        if not is_distributed(workload.optimizer):
            check_parts(workload.optimizer, spec.plan.plugin, tp=spec.plan.tp, pp=spec.plan.pp, has_slices=has_slices)
        if spec.plan.plugin == "gemini":
            check_gemini(spec, workload)
        if spec.plan.plugin in _SLICED:
            check_parameters(trained(workload), spec)

    def prepare(self, workload: Workload) -> None:
        from colossalai.accelerator import get_accelerator

        self.workload = workload
        self.device = get_accelerator().get_current_device()
        config: Any = getattr(workload.model, "config", None)
        is_split = self.mesh.replica_size > 1
        if (is_split or self.spec.plan.plugin == "hybrid") and getattr(config, "use_cache", False):
            config.use_cache = False  # only for generation; a pipeline would warn at each step
        self.plan = plan_class(self.spec)(self.spec, self.coordinates, self.device)
        whole = getattr(workload.model, "_orig_mod", workload.model)
        self._named = NamedBatches(whole, lost_arguments(whole) if self.mesh.pp > 1 else ())
        self.plan.boost(workload)
        self.plan.norms.tell_on(self.rank, self.tell)
        if self.mesh.pp > 1:
            self._named.hide_targets(self.plan.model)
        self.average = LossAverage(self.mesh, self.device, self.tell, self._expected)
        self._part_norms: PartNorms | None = None
        remark = remark_on_module_hooks(self.spec, workload.model)
        if remark:
            self.tell("module_hooks", remark)
        unused = remark_on_exchange(self.spec)
        if unused:
            self.tell("algorithm", unused)
        self._frozen: frozenset[str] = frozenset()

    def forward_backward(self, pieces: Sequence[Batch]) -> torch.Tensor | None:
        self._part_norms = None
        if self.plan.weights_exchange is not None:
            self.plan.weights_exchange.begin_step()
        self.average.begin(pieces, self.spec.plan.micro_batches)
        run = self._pipeline_piece if self.mesh.pp > 1 else self._piece
        losses = []
        for index, piece in enumerate(pieces):
            is_last = index == len(pieces) - 1
            self.mark("transfer", index if len(pieces) > 1 else -1)
            with self.plan.around(is_last=is_last):
                losses.append(run(piece, len(pieces), index))
        found = [loss for loss in losses if loss is not None]
        loss = torch.stack(found).sum() if found else None
        if self.plan.reduction is not None:
            self.plan.reduction.finish()
        factor = self.average.finish()
        if factor is not None:
            self.plan.scale_gradients(factor)
            loss = None if loss is None else loss * factor
        if self.plan.hooks:
            with self.alike("gradient hooks"):
                self.plan.run_gradient_hooks()
        self.plan.drop_gradients(self._frozen)
        return loss

    def _piece(self, piece: Batch, count: int, index: int) -> torch.Tensor:
        number = index if count > 1 else -1
        batch = to_device(contents(piece), self.device)
        self.mark("forward", number)
        before = versions_of(self.plan.held)
        with self.plan.norms.around(piece):
            term = self.plan.calling(lambda model: self._term(model, batch, samples_in(piece)))
        self.plan.frozen_by_cell.check()
        self._check_weights(before, "loss_fn or the model")
        loss = self.average.weighted(term, samples_in(piece), lambda: self.mark("communication", number))
        if self.plan.reduction is not None:
            self.plan.reduction.looks_at(loss)
        self.mark("backward", number)
        reduces = self.plan.reduction is None or not self.plan.reduction.afterwards
        if index == count - 1 and self.mark is not unmarked and self._ddp() is not None and reduces:
            mark_what_follows(loss, self.mark, number)
        self.plan.backward(loss)
        return loss.detach().float()

    def _check_weights(self, before: list[int], what: str) -> None:
        """Refuse what was changed of the weights where ranks would part. Collective in the first steps."""
        plan = self.plan
        is_judged = self.average.is_new and not self.spec.recipe and not self.is_alone()
        if plan.masters():
            check_unchanged(plan.held, before, self.spec.plan.plugin, what)
        elif plan.is_whole and self.mesh.dp > 1 and is_judged:
            check_changed_alike(plan.held, before, self.device, what)

    @contextmanager
    def editing(self, name: str) -> Iterator[None]:
        before = versions_of(self.plan.held)
        yield
        self._check_weights(before, name)

    def _term(self, model: torch.nn.Module, batch: Batch, samples: int) -> LossTerm:
        """The loss of one piece, of ``samples`` samples, by ``model``: the wrapped one, or the user's own."""
        with self.plan.autocast():
            if self.workload.loss_fn is not None:
                loss_fn = self.workload.loss_fn
                return loss_term(
                    lambda: loss_fn(model, batch), self._tell, samples=samples, division=self.average.division
                )
            outputs: list[Any] = []

            def compute() -> Any:
                outputs.append(call_model(model, batch))
                return self._criterion(outputs[0], batch)

            return loss_term(
                compute,
                self._tell,
                lambda loss: self._labels(loss, outputs[0], batch),
                samples=samples,
                division=self.average.division,
            )

    @property
    def _tell(self) -> Callable[[str, str], object] | None:
        return self.tell if self.average.is_new else None

    def _expected(self, batch: Batch) -> Any:
        labels = expected_labels(users_model(self.plan.module), batch)
        return samples_in(batch) if labels is None else labels

    def _labels(self, loss: Any, outputs: Any, batch: Batch) -> Any:
        return count_of_models_labels(users_model(self.plan.module), loss, outputs, batch)

    def rerun(self, pieces: Sequence[Batch], seen: Callable[[torch.Tensor], None]) -> torch.Tensor | None:
        """As ``Replayable.rerun``."""
        plan = self.plan
        if self.mesh.pp > 1:  # its schedule can only accumulate: the gradients are put aside meanwhile
            with undone(plan.module):
                losses = [self._rerun_pipeline(piece, seen) for piece in pieces]
            found = [loss for loss in losses if loss is not None]
            return torch.stack(found).sum() if found else None
        with plan.norms.recording(), plan.gathered():
            return rerun(plan.module, pieces, self._again, seen, loss_scale=plan.loss_scale())

    def _again(self, piece: Batch) -> torch.Tensor:
        batch = to_device(contents(piece), self.device)
        with self.plan.norms.around(piece):
            term = self._term(users_model(self.plan.module), batch, samples_in(piece))
        return self.average.again(term, samples_in(piece))

    def _rerun_pipeline(self, piece: Batch, seen: Callable[[torch.Tensor], None]) -> torch.Tensor | None:
        """The schedule once more, without the reductions that follow it."""
        plan = self.plan

        def criterion(outputs: Any, micro_batch: Any) -> torch.Tensor:
            loss = self._micro_loss(self.average.again, outputs, micro_batch)
            seen(loss)
            return loss

        with plan.no_sync():
            batch = self._named.named(to_device(contents(piece), self.device))
            result = plan.plugin.scheduler.forward_backward_step(
                plan.model, iter([batch]), criterion, plan.optimizer, return_loss=True
            )
        loss = result["loss"]
        return None if loss is None else loss.detach().float()

    def has_loss(self) -> bool:
        """As ``Pipelined.has_loss``."""
        return self.coordinates.pp == self.mesh.pp - 1

    @property
    def norms(self) -> BatchNorms:
        """As ``Replayable.norms``."""
        return self.plan.norms

    def skip(self) -> None:
        self.plan.skip()
        self.plan.end_step(self._frozen)

    @property
    def module(self) -> torch.nn.Module:
        """As ``Replayable.module``."""
        return self.plan.module

    def output_sharding(self, module: torch.nn.Module) -> str | None:
        """As ``Inspectable.output_sharding``."""
        return output_sharding(module) if self.mesh.tp > 1 else ""

    def _pipeline_piece(self, piece: Batch, count: int, index: int) -> torch.Tensor | None:
        plan = self.plan
        batch = self._named.named(to_device(contents(piece), self.device))
        forget_shapes_if_new(plan.plugin.scheduler, batch)
        if self.mark is not unmarked:
            mark_stages(plan.plugin.scheduler, self.mark, first=index * self.spec.plan.micro_batches)
        result = plan.booster.execute_pipeline(
            iter([batch]),
            plan.model,
            lambda outputs, micro_batch: self._micro_loss(self.average.weighted, outputs, micro_batch),
            plan.optimizer,
            return_loss=True,
        )
        loss = result["loss"]
        return None if loss is None else loss.detach().float()

    def _micro_loss(self, weigh: Callable[[LossTerm, float], torch.Tensor], outputs: Any, batch: Batch) -> torch.Tensor:
        """The weighted loss of a micro-batch, times the number of micro-batches, by which the schedule divides it."""
        batch = self._named.original(batch)
        samples = samples_in(batch)
        return weigh(self._term_of(outputs, batch, samples), samples) * self.spec.plan.micro_batches

    def _term_of(self, outputs: Any, batch: Batch, samples: int) -> LossTerm:
        """The loss of a batch of ``samples`` samples by what the last stage put out for it."""
        return loss_term(
            lambda: self._criterion(outputs, batch),
            self._tell,
            lambda loss: self._labels(loss, outputs, batch),
            samples=samples,
            division=self.average.division,
        )

    def _criterion(self, outputs: Any, batch: Batch) -> torch.Tensor:
        assert self.workload.criterion is not None  # check refused a workload without
        return self.workload.criterion(outputs, batch)

    def grad_sq(self) -> torch.Tensor:
        """As ``Normed.grad_sq``. Of ranks that step by themselves, the sum is the mean square of their norms."""
        alone = self.is_alone()
        if self._part_norms is None:
            self._part_norms = figures.part_norms(self.plan.reduced(all_held=alone), self.device)
        return self._part_norms.squared() / (self.mesh.dp if alone else 1)

    def is_alone(self) -> bool:
        """As ``LocallyUpdated.is_alone``."""
        return self.plan.weights_exchange is not None and self.plan.weights_exchange.is_alone

    def exchanges_weights(self) -> bool:
        """As ``LocallyUpdated.exchanges_weights``."""
        return self.plan.weights_exchange is not None and self.plan.weights_exchange.is_due

    def averaged(self) -> AbstractContextManager[None]:
        """As ``LocallyUpdated.averaged``."""
        exchange = self.plan.weights_exchange
        return nullcontext() if exchange is None else exchange.averaged()

    def part_norms(self) -> PartNorms | None:
        """As ``Normed.part_norms``."""
        return self._part_norms

    def step(self) -> bool:
        norm = self._global_norm() if self.plan.clip > 0 else None
        updated = self.plan.step(norm)
        if updated and self.plan.step_hooks:
            with self.alike("step hooks"), self.editing("a hook after steps of the optimizer"):
                self.plan.step_hooks.run()
        self.plan.end_step(self._frozen)
        return updated

    def _global_norm(self) -> float:
        if self.is_alone():
            return math.sqrt(self.grad_sq().item() * self.mesh.dp)
        total = self.grad_sq().clone()
        dist.all_reduce(total)
        return math.sqrt(total.item())

    def watch_batches(
        self, observer: BatchObserver, layers: Collection[str] | None = None, *, keep: bool = False
    ) -> AbstractContextManager[None]:
        """As ``Watchable.watch_batches``; of frozen layers nothing is shown, as their gradients are dropped."""
        if self._frozen:
            layers = frozenset(self.layers() if layers is None else layers) - self._frozen
        return self.plan.watching(self.aside(observer), layers, keep)

    def reducer(self) -> Any:
        """As ``DdpReduced.reducer``: what an algorithm sends, or goes over an emulated network, is seen."""
        return self._ddp() if self.plan.exchange is None and not self.spec.network else None

    def _ddp(self) -> Any:
        module = self.plan.model.module
        return module if isinstance(module, torch.nn.parallel.DistributedDataParallel) else None

    def local_factor(self) -> Number:
        """As ``Watchable.local_factor``."""
        return self.average.factor

    def reduced_gradients(self, layers: Collection[str] | None = None, *, all_held: bool = False) -> list[GradientPart]:
        """As ``Watchable.reduced_gradients``."""
        return self.plan.reduced(layers, all_held=all_held)

    def reports(self, layer: str, sharded: str) -> bool:
        """As ``Watchable.reports``."""
        return self.plan.reports(layer, sharded)

    def compare(self, parts: Sequence[GradientPart]) -> Comparison | None:
        """As ``Watchable.compare``."""
        return self.plan.compare(parts)

    def weights(self, layers: Collection[str] | None = None) -> list[WeightPart]:
        """As ``Watchable.weights``."""
        return self.plan.weights(layers)

    def weight_matrices(self) -> list[WeightMatrix]:
        """As ``Shaped.weight_matrices``."""
        return self.plan.matrices()

    def sum_over_shards(self, values: torch.Tensor) -> None:
        """As ``Shaped.sum_over_shards``: over the tensor-parallel ranks."""
        if self.mesh.tp > 1:
            all_reduce_uncounted(values, group=self.plan.plugin.tp_group)

    def layer_sizes(self) -> dict[str, int]:
        """As ``Watchable.layer_sizes``."""
        return self.plan.sizes

    def loss_scale(self) -> float:
        """As ``LossScaled.loss_scale``."""
        return self.plan.loss_scale()

    def framework_norm(self) -> float:
        """As ``NormReporting.framework_norm``."""
        return self.plan.framework_norm

    def watch_framework_norm(self, watch: bool) -> None:
        """As ``NormReporting.watch_framework_norm``."""
        self.plan.watch_framework_norm = watch

    @torch.no_grad()
    def forward(self, batch: Batch) -> Any:
        """As ``Evaluating.forward``."""
        batch = to_device(batch, self.device)
        with evaluating(self.plan.model), self.plan.autocast():
            if self.mesh.pp > 1:
                plan = self.plan
                return forward_only(plan.plugin.scheduler, plan.model, plan.cast(batch))
            with self.plan.gathered():
                return call_model(users_model(self.plan.module), batch)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """As ``Gathering.gathered``."""
        with self.plan.gathered():
            yield

    def evaluated(self, batch: Batch, *, outputs: bool = False) -> tuple[Any, LossTerm] | None:
        """As ``Validating.evaluated``."""
        batch = to_device(contents(batch), self.device)
        if self.mesh.pp > 1:
            with torch.no_grad(), evaluating(self.plan.model), self.plan.autocast():
                return self._evaluated_by_stages(batch)
        with self.evaluation() as model, outputs_seen(users_model(self.plan.module)) as seen:
            term = self._term(model, batch, samples_in(batch))
        return first_output(seen) if outputs else None, term

    def _evaluated_by_stages(self, batch: Batch) -> tuple[Any, LossTerm] | None:
        plan = self.plan
        found = forward_only(plan.plugin.scheduler, plan.model, self._named.named(batch))
        return (found, self._term_of(found, batch, samples_in(batch))) if self.has_loss() else None

    @contextmanager
    def evaluation(self) -> Iterator[torch.nn.Module]:
        """As ``Validating.evaluation``."""
        if self.mesh.pp > 1:
            raise ConfigError("a pipeline (--pp) has the whole model on no rank", field="--pp")
        with torch.no_grad(), self.plan.gathered(), evaluating(self.plan.model), self.plan.autocast():
            yield users_model(self.plan.module) if self.plan.is_whole else self.plan.model

    def set_clip(self, clip: float) -> None:
        """As ``Normed.set_clip``."""
        self.plan.set_clip(clip)

    def set_frozen(self, layers: Collection[str]) -> None:
        """As ``Freezable.set_frozen``."""
        self._frozen = frozenset(layers)

    def layers(self) -> list[str]:
        """As ``Freezable.layers``."""
        return self.plan.names.layers

    def rank_state(self) -> RankState:
        """As ``Checkpointable.rank_state``."""
        return self.plan.rank_state()

    def generators(self) -> Mapping[str, ModuleGenerator]:
        """As ``Replayable.generators``."""
        return self.plan.generators

    def close(self) -> None:
        if hasattr(self, "plan"):
            # Kept until DDP's reducer is gone: were its reference the last one, the group would end while this thread
            # has the interpreter lock, and wait for a gloo thread that waits for the lock.
            self.plan.norms.close()
            groups = self.plan.groups()
            self.plan.hooks.give_back()
            self.plan.step_hooks.give_back()
            self.plan.step_reads.close()
            self.plan.close()
            del self.plan
            gc.collect()
            del groups
        repairs.forget_coordinator()
