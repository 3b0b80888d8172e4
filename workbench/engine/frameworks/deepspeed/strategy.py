"""DeepSpeed's ZeRO 1 and 2: the optimizer's state, and with 2 the gradients, are split over the ranks. ``zero3`` has 3.

The loop, the batches and the loss are the trainer's; the engine casts the model, reduces gradients, clips and updates.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import deepspeed
import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.batch import Batch
from workbench.engine.base.parts import BatchObserver, Comparison, GradientPart, WeightPart
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.deepspeed.checks import check
from workbench.engine.frameworks.deepspeed.config_file import resolved
from workbench.engine.frameworks.deepspeed.partitions import Partitions
from workbench.engine.frameworks.deepspeed.reduction import ZeroReduction
from workbench.engine.frameworks.deepspeed.state import PartitionedState
from workbench.engine.frameworks.torch.whole_model import ReplicatedStrategy
from workbench.engine.frameworks.torch_common.gradient_hooks import StepHooks
from workbench.engine.frameworks.torch_common.losses.terms import LossTerm
from workbench.engine.frameworks.torch_common.losses.whole_model import AUTOCAST_TYPES, WholeModel
from workbench.engine.frameworks.torch_common.optimizer_state import moments_of
from workbench.engine.frameworks.torch_common.parameters import RankParameter
from workbench.engine.frameworks.torch_common.step_reads import StepReads
from workbench.engine.frameworks.torch_common.trained import convert_inputs, modes_of, set_modes
from workbench.engine.frameworks.torch_common.weight_changes import check_unchanged
from workbench.engine.state.layout import RankState


def engine_config(spec: TrainSpec, elements: int) -> dict[str, Any]:
    """What the engine is given. ``elements``: of all trained parameters; no bucket is larger, as a smaller model needs
    none. Batches, their pieces and the optimizer are the trainer's: the engine knows of one piece at a time."""
    config = resolved(spec)
    config.pop("optimizer", None)
    config.pop("train_batch_size", None)
    zero = config["zero_optimization"]
    for name in ("reduce_bucket_size", "allgather_bucket_size"):
        zero[name] = min(zero[name], 2 * -(-elements // 2))  # DeepSpeed needs an even number
    return {**config, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}


class ZeroStrategy(ReplicatedStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    #: what a rank has of each parameter
    partitioned: Any = Partitions

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        super().check(spec, workload)
        check(spec, workload)

    def _distribute(self) -> None:
        modes = modes_of(self._module)
        for parameter in self._module.parameters():
            parameter.data = parameter.data.contiguous()  # parts are taken of a flat view
        self._share_out()
        self._mine = self._held
        elements = sum(self._names.sizes.values())
        states = {key: state for key, state in self._optimizer.state.items() if state}
        self._step_hooks = StepHooks()
        self._step_hooks.take(self._optimizer)
        self._engine, self._zero, *_ = deepspeed.initialize(
            model=self._module, optimizer=self._optimizer, config=engine_config(self.spec, elements)
        )
        set_modes(self._module, modes)
        # the engine has cast the model, so nothing else is
        self._whole = WholeModel(self.workload, self._module, self.device, "fp32")
        dtype = AUTOCAST_TYPES.get(self.spec.precision)
        self._cast = None if dtype is None else convert_inputs(self._module, partial(_cast, dtype=dtype))
        self._partitions = self.partitioned(self._zero, self._optimizer)
        self._partitions.take_over(states, self._optimizer)
        self._step_reads = StepReads(
            self._optimizer, [item.parameter for item in self._held], has_copies=True, tp=1, pp=1
        )
        self._reduction = ZeroReduction(self._engine, self._held, self.device, may_differ=not self.spec.recipe)
        self.model = self._run

    def _make_scaler(self) -> Any:
        return _EngineScaler(self._zero, enabled=self.spec.precision == "fp16")

    def _run(self, compute: Callable[[], LossTerm]) -> LossTerm:
        """``compute`` inside the engine's forward pass, which is to see the loss."""
        found: list[LossTerm] = []

        def value() -> torch.Tensor:
            found.append(compute())
            return found[0].value

        value_seen = self._engine(value)
        return replace(found[0], value=value_seen)

    def _piece(self, piece: Batch, number: int, is_last: bool) -> torch.Tensor:
        return super()._piece(piece, number, is_last).float()

    def _backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def _check_weights(self, items: list[RankParameter], before: list[int], what: str) -> None:
        check_unchanged(items, before, self.spec.plan.plugin, what)

    def _end_gradients(self, loss: Any) -> Any:
        factor = self.average.finish()
        if factor is not None:
            torch._foreach_mul_(self._gradients(), factor)
            loss = loss * factor
        unused = self._reduction.unused
        alone = [item for item in self._held if item.layer in self._frozen or id(item.parameter) in unused]
        for item in alone:
            gradient = self._partitions.gradient(item.parameter)
            if gradient is not None:
                gradient.zero_()
        for item in alone if factor is None else self._held:
            self._partitions.tell_norm(item.parameter)
        self._partitions.left_alone = {id(item.parameter) for item in alone}
        return loss

    def _gradients(self) -> list[torch.Tensor]:
        found = [self._partitions.gradient(item.parameter) for item in self._held]
        return [gradient for gradient in found if gradient is not None]

    def step(self) -> bool:
        self._zero.clip_grad = self._clip
        self._engine.step()
        self._scaler.update()
        self._framework_norm = float(self._zero._global_grad_norm or 0.0)
        overflowed = bool(self._zero.overflow)
        if not overflowed and self._step_hooks:
            self._step_hooks.run()
        return not overflowed

    def skip(self) -> None:
        self._zero.zero_grad(set_to_none=True)
        self._zero._release_preflattened_grad_buffers()
        if self._zero.cpu_offload:
            self._zero.reset_cpu_buffers()
        for group in list(self._zero.averaged_gradients):
            self._zero.averaged_gradients[group] = None
            self._zero.all_grad_tensors[group] = None

    def watch_batches(
        self, observer: BatchObserver, layers: Collection[str] | None = None, *, keep: bool = False
    ) -> AbstractContextManager[None]:
        """As ``Watchable.watch_batches``."""
        items = [item for item in self._chosen(self._held, layers) if item.layer not in self._frozen]
        return self._reduction.watching(items, self.loss_scale, self.aside(observer), keep=keep)

    def _parts(self, items: Sequence[RankParameter]) -> list[GradientPart]:
        scale, sharded = self.loss_scale(), "dp" if self.mesh.dp > 1 else ""
        found = []
        for item in items:
            if id(item.parameter) in self._partitions.left_alone:
                continue
            gradient = self._partitions.gradient(item.parameter)
            part = torch.empty(0, device=self.device) if gradient is None else gradient
            found.append(GradientPart(item.layer, part, sharded, scale, item))
        return found

    def reports(self, layer: str, sharded: str) -> bool:
        """As ``Watchable.reports``: each rank has a part."""
        return True

    def compare(self, parts: Sequence[GradientPart]) -> Comparison:
        """As ``Watchable.compare``: of the reduced gradient this rank has its own part."""
        pairs, nothing = [], torch.empty(0, device=self.device)
        for part in parts:
            parameter = part.source.parameter
            fragment, reduced = self._partitions.fragment(parameter), self._partitions.gradient(parameter)
            if fragment is None or reduced is None:
                pairs.append([(nothing, nothing)])
            else:
                pairs.append([(fragment.cut(part.tensor), reduced)])
        return Comparison("exact" if self.mesh.dp == 1 else "slice", pairs)

    def weights(self, layers: Collection[str] | None = None) -> list[WeightPart]:
        """As ``Watchable.weights``."""
        found = []
        for item in self._chosen(self._held, layers):
            fragment = self._partitions.fragment(item.parameter)
            if fragment is not None:
                moments = moments_of(self._optimizer, fragment.weight)
                weight = fragment.weight.detach()
                found.append(WeightPart(item.layer, weight, "dp" if self.mesh.dp > 1 else "", moments))
        return found

    def framework_norm(self) -> float:
        """As ``NormReporting.framework_norm``."""
        return self._framework_norm

    def watch_framework_norm(self, watch: bool) -> None:
        """As ``NormReporting.watch_framework_norm``: DeepSpeed computes it in every step."""

    def rank_state(self) -> RankState:
        """As ``Checkpointable.rank_state``."""
        state = PartitionedState(
            module=self._module,
            originals=self.originals,
            mesh=self.mesh,
            here=self.coordinates,
            optimizer=self._optimizer,
            partitions=self._partitions,
            updated={id(parameter) for group in self._zero.bit16_groups for parameter in group},
        )
        return state.rank_state(self._scaler if self._scaler.is_enabled() else None)

    def close(self) -> None:
        if hasattr(self, "_engine"):
            self.norms.close()
            self._hooks.give_back()
            self._step_hooks.give_back()
            self._step_reads.close()
            if self._cast is not None:
                self._cast.remove()
            for hook in (self._engine.module_forward_pre_hook, self._engine.module_forward_post_hook):
                hook.remove()
            self._partitions.close()
            self._engine.destroy()
            del self._engine, self._zero, self.model, self._scaler, self._reduction, self._partitions
            gc.collect()


class _EngineScaler:
    """DeepSpeed's loss scale, with what is asked of torch's.

    DeepSpeed doubles the scale before it divides the gradients of that step by it, so that the step is half as large
    (docs/upstream.md): here the scale grows in ``update``, after the step.
    """

    def __init__(self, zero: Any, *, enabled: bool) -> None:
        self._zero = zero
        self._enabled = enabled
        self._is_due = False
        zero._update_scale = self._lower_at_once

    def _lower_at_once(self, has_overflow: bool = False) -> None:
        if has_overflow:
            self._zero.loss_scaler.update_scale(True)
        self._is_due = not has_overflow

    def update(self) -> None:
        """The step is over: raise the scale where enough steps had no overflow."""
        if self._is_due:
            self._is_due = False
            self._zero.loss_scaler.update_scale(False)

    def is_enabled(self) -> bool:
        """Whether losses are scaled."""
        return self._enabled

    def get_scale(self) -> float:
        """What losses are multiplied by."""
        return float(self._zero.loss_scale) if self._enabled else 1.0

    def state_dict(self) -> dict[str, Any]:
        """As ``LossScaler.state_dict``."""
        scaler = self._zero.loss_scaler
        names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
        return {name: getattr(scaler, name) for name in names if hasattr(scaler, name)}  # a fixed scale has the first

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As ``LossScaler.load_state_dict``."""
        for name in self.state_dict():
            if name in state:
                setattr(self._zero.loss_scaler, name, state[name])


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
