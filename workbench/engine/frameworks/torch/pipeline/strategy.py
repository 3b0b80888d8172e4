"""torch's pipelines: each rank holds one or two stages of the model, and replicas average the gradients of theirs.

Mixed precision is torch's autocast over fp32 weights, in fp16 with a gradient scaler.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.parts import WeightMatrix
from workbench.engine.base.workload import Workload
from workbench.engine.data.batches import samples_in, split
from workbench.engine.frameworks.torch.native import NativeStrategy
from workbench.engine.frameworks.torch.pipeline.assembly import assemble, tensor_plan
from workbench.engine.frameworks.torch.pipeline.groups import AxisGroups
from workbench.engine.frameworks.torch.pipeline.reduction import StageReduction
from workbench.engine.frameworks.torch.pipeline.runner import MicroBatch, Runner
from workbench.engine.frameworks.torch.pipeline.split import check_split
from workbench.engine.frameworks.torch.schedules import SCHEDULES
from workbench.engine.frameworks.torch.tensor_parallel.parallelize import output_sharding
from workbench.engine.frameworks.torch_common.batch_norm import BatchNorms
from workbench.engine.frameworks.torch_common.batches import (
    call_model,
    check_trainable,
    evaluating,
    first_output,
    outputs_seen,
    to_device,
)
from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.engine.frameworks.torch_common.exchange import all_reduce_uncounted
from workbench.engine.frameworks.torch_common.gradient_hooks import (
    GradientHooks,
    check_hooks,
    remark_on_module_hooks,
)
from workbench.engine.frameworks.torch_common.losses.average import LossAverage
from workbench.engine.frameworks.torch_common.losses.terms import (
    LossTerm,
    count_of_models_labels,
    expected_labels,
    loss_term,
)
from workbench.engine.frameworks.torch_common.losses.whole_model import AUTOCAST_TYPES
from workbench.engine.frameworks.torch_common.optimizer_checks import check_parts
from workbench.engine.frameworks.torch_common.parameters import (
    ModelNames,
    rank_parameters,
    share_of_replicas,
)
from workbench.engine.frameworks.torch_common.rerun import undone
from workbench.engine.frameworks.torch_common.state_locator import StateLocator
from workbench.engine.frameworks.torch_common.step_reads import StepReads
from workbench.engine.frameworks.torch_common.weight_changes import FrozenByCell
from workbench.engine.state.layout import Originals, Place, RankState
from workbench.errors import ConfigError


class PipelineStrategy(NativeStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        check_trainable(spec, workload)
        if workload.beside:
            raise ConfigError(
                f"the optimizer has parameters of {', '.join(workload.beside)}, which is not part of the model: "
                "--framework torch --plugin hybrid trains the model alone. Use --plugin ddp",
                field="optimizer",
            )
        if spec.plan.tp > 1:
            tensor_plan(spec, workload)
            if any(workload.optimizer.state.values()):
                raise ConfigError(
                    "the optimizer has state already, as the cell stepped it or loaded its state: --tp splits weights "
                    "only. Leave out --tp, or make the optimizer anew",
                    field="optimizer",
                )
        if spec.plan.pp > 1:
            check_split(workload.model, spec, workload.pipeline_split)
        check_hooks(spec, workload.model, workload.optimizer, has_copies=False)
        check_parts(workload.optimizer, spec.plan.plugin, tp=spec.plan.tp, pp=spec.plan.pp, has_slices=False)

    def prepare(self, workload: Workload) -> None:
        self.workload = workload
        self.device = rank_device()
        self._module = workload.model
        config: Any = getattr(self._module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False  # only for generation
        self._optimizer = workload.optimizer
        self._names = ModelNames(self._module, workload.optimizer)
        self.originals = Originals(self._module)
        self._frozen_by_cell = FrozenByCell(self._module, workload.optimizer)
        remark = remark_on_module_hooks(self.spec, self._module)
        if remark:
            self.tell("module_hooks", remark)
        self._hooks = GradientHooks()
        self._hooks.take(self._module.parameters())
        self.norms = BatchNorms(
            self._module,
            replicas=self.mesh.dp if self.mesh.pp == 1 else 1,  # models that are split have no batch normalisation
            synchronised=False,
            accumulate=self.spec.accumulate,
        )
        self.norms.tell_on(self.rank, self.tell)
        self._split(workload)
        self.average = LossAverage(self.mesh, self.device, self.tell, self._expected)
        self._begin()
        self._losses: list[torch.Tensor] = []

    def _split(self, workload: Workload) -> None:
        """Leave the other ranks' stages out, and make what this rank's need."""
        mesh, here = self.mesh, self.coordinates
        found = assemble(self.spec, workload, here, self.device, self.originals)
        stages, self._blanks, self._cuts = found.stages, found.stages.blanks, found.cuts
        groups = AxisGroups(mesh, here)
        tied = [(parameter, groups.of_stages(ranks)) for parameter, ranks in stages.shared]
        foreign = [parameter for parameter, ranks in stages.shared if here.pp in ranks[1:]]
        cut = {
            id(p): self._cuts[self.originals.name(name)].dim
            for name, p in self._module.named_parameters()
            if self.originals.name(name) in self._cuts
        }
        self._cut_dims, self._tensor_group = cut, groups.tensor
        self._held = rank_parameters(
            self._module, self._names, is_sharded=lambda parameter: id(parameter) in cut, foreign=foreign
        )
        turns = {layer: turn for turn, layer in enumerate(self._names.layers)}
        self._mine = share_of_replicas(self._held, turns, mesh, here)
        self._shares = {(item.layer, item.sharded) for item in self._mine}
        self._reduction = StageReduction(
            [item.parameter for item in self._held],
            replicas=groups.replicas,
            size=mesh.dp,
            tied=[(parameter, group) for parameter, group in tied if group is not None and parameter.requires_grad],
            device=self.device,
        )
        self._step_reads = StepReads(
            workload.optimizer, [item.parameter for item in self._held], has_copies=False, tp=mesh.tp, pp=mesh.pp
        )
        self._runner = Runner(
            self._module,
            stages,
            SCHEDULES[self.spec.plan.schedule],
            rank_of_stage=found.rank_of_stage,
            here=here.pp,
            group=groups.pipeline,
            device=self.device,
            autocast=self._autocast,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST_TYPES.get(self.spec.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def _expected(self, batch: Batch) -> Any:
        labels = expected_labels(self._module, batch)
        return samples_in(batch) if labels is None else labels

    def has_loss(self) -> bool:
        """As ``Pipelined.has_loss``."""
        return self._runner.has_last

    def forward_backward(self, pieces: Sequence[Batch]) -> torch.Tensor | None:
        self._part_norms = None
        self._losses = []
        self.average.begin(pieces, self.spec.plan.micro_batches)
        for index, piece in enumerate(pieces):
            self._run(piece, index, len(pieces), self._loss)
        self._frozen_by_cell.check()
        last = len(pieces) * self.spec.plan.micro_batches - 1
        self.mark("backward", last or -1)  # in which collectives are seen, and become communication
        self._reduction.finish()
        loss = torch.stack(self._losses).sum() if self._losses else None
        return self._end_gradients(loss)

    def _run(self, piece: Batch, index: int, count: int, loss_of: Callable[[MicroBatch], torch.Tensor]) -> None:
        """Forward and backward over one piece of the batch."""
        micro_batches, marks = self.spec.plan.micro_batches, self._runner.marks
        is_one = count * micro_batches == 1
        self.mark("transfer", -1 if is_one else index * micro_batches)
        parts = split(piece, micro_batches)
        moved = [MicroBatch(to_device(contents(part), self.device), samples_in(part)) for part in parts]
        marks.mark, marks.first = self.mark, -1 if is_one else index * micro_batches
        with self.norms.around(piece):
            self._runner.step(moved, loss_of)

    def _loss(self, micro_batch: MicroBatch) -> torch.Tensor:
        loss = self.average.weighted(self._term(micro_batch.batch, micro_batch.samples), micro_batch.samples)
        self._losses.append(loss.detach())
        return self._scaler.scale(loss)

    def _term(self, batch: Batch, samples: int) -> LossTerm:
        """The loss of a batch of ``samples`` samples on the last stage, which calls the model."""
        outputs: list[Any] = []

        def compute() -> Any:
            if self.workload.loss_fn is not None:
                return self.workload.loss_fn(self._module, batch)
            assert self.workload.criterion is not None  # check refused a workload without
            outputs.append(self._runner.outputs(batch))
            return self.workload.criterion(outputs[0], batch)

        def count(loss: torch.Tensor) -> Any:
            return count_of_models_labels(self._module, loss, outputs[0], batch) if outputs else None

        tell = self.tell if self.average.is_new else None
        return loss_term(compute, tell, count, samples=samples, division=self.average.division)

    def weight_matrices(self) -> list[WeightMatrix]:
        """As ``Shaped.weight_matrices``."""
        found = [
            item.matrix_of(item.real(item.parameter.detach()), self._cut_dims.get(id(item.parameter)))
            for item in self._mine
        ]
        return [matrix for matrix in found if matrix is not None]

    def sum_over_shards(self, values: torch.Tensor) -> None:
        """As ``Shaped.sum_over_shards``: over the tensor-parallel ranks."""
        if self._tensor_group is not None:
            all_reduce_uncounted(values, group=self._tensor_group)

    def rank_state(self) -> RankState:
        """As ``Checkpointable.rank_state``."""
        state = StateLocator(
            module=self._module,
            originals=self.originals,
            mesh=self.mesh,
            here=self.coordinates,
            foreign={id(item.parameter) for item in self._held if item.foreign},
            places={name: Place(self.originals.shapes[name], cut.dim, cut.runs) for name, cut in self._cuts.items()},
        )
        return state.rank_state(self._optimizer, scaler=self._scaler if self._scaler.is_enabled() else None)

    def output_sharding(self, module: torch.nn.Module) -> str | None:
        """As ``Inspectable.output_sharding``."""
        return output_sharding(module) if self.mesh.tp > 1 else ""

    def rerun(self, pieces: Sequence[Batch], seen: Callable[[torch.Tensor], None]) -> torch.Tensor | None:
        """As ``Replayable.rerun``."""
        losses: list[torch.Tensor] = []

        def again(micro_batch: MicroBatch) -> torch.Tensor:
            loss = self.average.again(self._term(micro_batch.batch, micro_batch.samples), micro_batch.samples)
            seen(loss)
            losses.append(loss.detach().float())
            return loss * self.loss_scale()

        # with zeros in place of what other stages compute: whoever looks for numbers that are not finite sees no others
        with undone(self._module), self.norms.recording(), self._blanks.zeros():
            for index, piece in enumerate(pieces):
                self._run(piece, index, len(pieces), again)
        return torch.stack(losses).sum() if losses else None

    @torch.no_grad()
    def forward(self, batch: Batch) -> Any:
        """As ``Evaluating.forward``."""
        with evaluating(self._module):
            return self._runner.forward(to_device(batch, self.device), lambda given: call_model(self._module, given))

    @torch.no_grad()
    def evaluated(self, batch: Batch, *, outputs: bool = False) -> tuple[Any, LossTerm] | None:
        """As ``Validating.evaluated``."""

        def found(given: Batch) -> tuple[Any, LossTerm]:
            with outputs_seen(self._module) as seen:
                term = self._term(given, samples_in(given))
            return first_output(seen) if outputs else None, term

        with evaluating(self._module):
            result: tuple[Any, LossTerm] | None = self._runner.forward(to_device(contents(batch), self.device), found)
        return result

    @contextmanager
    def evaluation(self) -> Iterator[torch.nn.Module]:
        """As ``Validating.evaluation``."""
        if self.mesh.pp > 1:
            raise ConfigError("a pipeline (--pp) has the whole model on no rank", field="--pp")
        with torch.no_grad(), evaluating(self._module), self._autocast():
            yield self._module

    def close(self) -> None:
        if hasattr(self, "_runner"):
            self.norms.close()
            self._step_reads.close()
            self._hooks.give_back()
            del self._runner, self._reduction
            gc.collect()
