"""Runs the stages of this rank: a step by torch's schedule, or one batch through stage after stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import pipelining
from torch.utils._pytree import tree_leaves

from workbench.engine.base.batch import Batch
from workbench.engine.base.containers import arrays_in
from workbench.engine.frameworks.torch.pipeline.items import EndOfStage, Shape
from workbench.engine.frameworks.torch.pipeline.split import Stages
from workbench.engine.frameworks.torch.pipeline.stage import MarkedStage, Marks, StageModule
from workbench.engine.frameworks.torch.schedules import Schedule
from workbench.engine.frameworks.torch_common.batches import call_model
from workbench.errors import ConfigError

#: steps in which outputs are looked at for numbers that the stage does not have
_CHECKED_STEPS = 3


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A part of a batch, on the device, and how many samples of it count (0: a stand-in)."""

    batch: Batch
    samples: int


#: what the last stage makes of a micro-batch, by calling the model
LossOf = Callable[[MicroBatch], torch.Tensor]


class Runner:
    """The stages of ``model`` that this rank holds. ``rank_of_stage``: which rank of ``group`` holds each; this one is
    number ``here``. ``autocast``: entered around whatever is computed."""

    def __init__(
        self,
        model: torch.nn.Module,
        stages: Stages,
        schedule: Schedule,
        *,
        rank_of_stage: Mapping[int, int],
        here: int,
        group: Any,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.marks = Marks()
        self._model = model
        self._stages = stages
        self._schedule = schedule
        self._rank_of_stage = rank_of_stage
        self._here = here
        self._group = group
        self._device = device
        self._autocast = autocast
        self._trains = _trains_before(stages, len(rank_of_stage))
        self._known: dict[Any, dict[int, Shape]] = {}
        self._built: tuple[Any, Any] = (None, None)
        self._steps = 0
        self._micro_batches: Sequence[MicroBatch] = ()
        self._loss_of: LossOf = _no_loss
        self._shapes: dict[int, Shape] = {}

    @property
    def has_last(self) -> bool:
        """Whether this rank holds the last stage."""
        return self._rank_of_stage[len(self._rank_of_stage) - 1] == self._here

    def step(self, micro_batches: Sequence[MicroBatch], loss_of: LossOf) -> None:
        """Forward and backward over all micro-batches; gradients are added up. Collective over the pipeline."""
        self._steps += 1
        signatures = [_signature(one.batch) for one in micro_batches]
        if any(signature != signatures[0] for signature in signatures):
            raise ConfigError(
                f"the micro-batches of a pipeline have tensors of one shape each, not {signatures[0]} and "
                f"{next(s for s in signatures if s != signatures[0])}: pad the samples of a batch to one length",
                field="dataset",
            )
        key = (signatures[0], len(micro_batches))
        self._micro_batches, self._loss_of = micro_batches, loss_of
        self._shapes = self._shapes_of(micro_batches[0].batch)
        if self._built[0] != key:
            self._built = (key, self._build(len(micro_batches)))
        numbers = torch.arange(len(micro_batches))
        self.marks.waiting = 0
        try:
            self._built[1].step(number=numbers, target=numbers, return_outputs=False)
        except RuntimeError as error:  # torch's, of whatever the model raised
            raise error.__cause__ or error from None
        finally:
            self._micro_batches, self._loss_of = (), _no_loss
            self._stages.leave()

    def forward(self, batch: Batch, last: Callable[[Batch], Any]) -> Any:
        """What ``last`` returns on the last stage, where it may call the model; None on the others. Collective over the
        pipeline."""
        self._shapes = self._shapes_of(batch)
        output: torch.Tensor | None = None
        for stage in range(len(self._rank_of_stage)):
            if self._rank_of_stage[stage] != self._here:
                continue
            received = self._received(stage, output)
            if stage == len(self._rank_of_stage) - 1:
                self._stages.enter(stage, received)
                with self._autocast():
                    result = last(batch)
                self._stages.leave()
                return result
            output = self._hidden(stage, batch, received)
            after = self._rank_of_stage[stage + 1]
            if after != self._here:
                dist.send(output, group=self._group, group_dst=after)
        self._stages.leave()
        return None

    def outputs(self, batch: Batch) -> Any:
        """Outputs of the model for ``batch`` on the last stage; to be called where ``last`` or ``loss_of`` is."""
        return self._checked(lambda: call_model(self._model, batch))

    def _checked(self, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns. In the first steps, ``ConfigError`` if it depends on what an earlier stage computed
        and did not pass on: then it is NaN, and with zeros in its stead it is not."""
        outputs, running = compute(), self._stages.running
        if running.stage and not running.has_begun:
            raise ConfigError(_not_called(running.stage), field="pipeline_split")
        if not running.stage or self._steps > _CHECKED_STEPS or not _has_nan(outputs):
            return outputs
        running.has_begun = False
        with self._stages.blanks.zeros(), torch.no_grad():
            needs_more = not _has_nan(compute())
        if needs_more:
            raise ConfigError(
                f"pipeline stage {running.stage} takes more from earlier stages than the one tensor that is passed on "
                "(the model's outputs depend on a module or a parameter that it does not hold): let pipeline_split "
                "name other modules, or use --plugin ddp",
                field="--pp",
            )
        return outputs

    def _received(self, stage: int, output: torch.Tensor | None) -> torch.Tensor | None:
        before = self._rank_of_stage.get(stage - 1)
        if before is None or before == self._here:
            return output
        shape = self._shapes[stage]
        received = torch.empty(shape.shape, dtype=shape.dtype, device=self._device)
        dist.recv(received, group=self._group, group_src=before)
        return received

    def _compute(self, stage: int, number: int, received: torch.Tensor | None) -> torch.Tensor:
        """As ``stage.Compute``."""
        micro_batch = self._micro_batches[number]
        if stage < len(self._rank_of_stage) - 1:
            return self._hidden(stage, micro_batch.batch, received)
        self._stages.enter(stage, received)
        with self._autocast():
            return self._loss_of(micro_batch)

    def _hidden(self, stage: int, batch: Batch, received: torch.Tensor | None) -> torch.Tensor:
        self._stages.enter(stage, received)
        with self._autocast():
            output: torch.Tensor = self._checked(lambda: self._passed_on(batch))
        expected = self._shapes[stage + 1]
        if tuple(output.shape) != expected.shape:
            raise ConfigError(
                f"pipeline stage {stage} puts out a tensor of shape {tuple(output.shape)}, not {expected.shape}: its "
                "shape depends on the numbers of the batch, which the next stage does not know. Use --plugin ddp",
                field="--pp",
            )
        output = output.to(expected.dtype).contiguous()
        # torch detaches what was sent in place, which no view allows
        return output.clone() if output._is_view() or output is received else output

    def _passed_on(self, batch: Batch) -> torch.Tensor:
        """The forward pass up to the next stage."""
        try:
            call_model(self._model, batch)
        except EndOfStage as end:
            return end.output
        raise ConfigError(_not_called(self._stages.running.stage + 1), field="pipeline_split")

    @torch.no_grad()
    def _shapes_of(self, batch: Batch) -> dict[int, Shape]:
        """What each stage but the first receives for ``batch``; nothing is computed."""
        key = _signature(batch)
        if key not in self._known and len(self._rank_of_stage) > 1:
            running = self._stages.running
            running.shapes = {}
            try:
                with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
                    call_model(self._model, batch)
            except EndOfStage:
                pass  # it came to the last stage
            finally:
                found, running.shapes = running.shapes, None
            missing = [stage for stage in range(1, len(self._rank_of_stage)) if stage not in found]
            if missing:
                raise ConfigError(_not_called(missing[0]), field="pipeline_split")
            self._known[key] = found
        return self._known.get(key, {})

    def _build(self, count: int) -> Any:
        """Torch's schedule for ``count`` micro-batches of these shapes."""
        made = [self._stage(stage) for stage in self._stages.held]
        kind = getattr(pipelining, self._schedule.torch_class)
        stages = made if self._schedule.stages > 1 else made[0]
        return kind(stages, count, loss_fn=_loss_itself, scale_grads=False)

    def _stage(self, stage: int) -> MarkedStage:
        last = len(self._rank_of_stage) - 1
        received = (self._example(stage),) if stage else ()
        sent = self._example(stage + 1) if stage < last else torch.empty((), device="meta").requires_grad_()
        return MarkedStage(
            StageModule(stage, self._stages.held[stage], self._compute),
            stage,
            last + 1,
            self.marks,
            device=self._device,
            group=self._group,
            input_args=received,
            output_args=(sent,),
        )

    def _example(self, stage: int) -> torch.Tensor:
        """Like what a stage receives."""
        shape = self._shapes[stage]
        return torch.empty(shape.shape, dtype=shape.dtype, device="meta").requires_grad_(stage in self._trains)


def _trains_before(stages: Stages, count: int) -> set[int]:
    """Stages that send gradients back: some parameter of an earlier stage requires one."""
    return {stage for stage in range(1, count) if stages.trained and min(stages.trained) < stage}


def _not_called(stage: int) -> str:
    return (
        f"the model did not call the module with which pipeline stage {stage} begins: let pipeline_split name modules "
        "that every forward pass calls once, or use --plugin ddp"
    )


def _has_nan(outputs: Any) -> bool:
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    return any(bool(tensor.isnan().any()) for tensor in tensors if tensor.is_floating_point())


def _no_loss(micro_batch: MicroBatch) -> torch.Tensor:
    raise AssertionError("no step is running")


def _loss_itself(output: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """The last stage puts out the loss."""
    return output


def _signature(batch: Batch) -> tuple[Any, ...]:
    return tuple((place, tuple(array.shape), str(array.dtype)) for place, array in arrays_in(batch))
