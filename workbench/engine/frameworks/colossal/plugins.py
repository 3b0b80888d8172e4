"""What differs between Colossal-AI's plugins: one small class each, all with the same verbs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from workbench.engine.base.parts import BatchObserver, Comparison, GradientPart, WeightPart
from workbench.engine.base.workload import Workload
from workbench.engine.communication.checks import exchange_of
from workbench.engine.frameworks.colossal.local_gradients import before_buckets, before_pipeline_sync
from workbench.engine.frameworks.colossal.module_state import ScalerState
from workbench.engine.frameworks.colossal.pipeline_parallel.schedules import SCHEDULES
from workbench.engine.frameworks.colossal.plugin import AUTOCAST_TYPES, INITIAL_SCALE, Plan, Wanted, record_skips
from workbench.engine.frameworks.colossal.sequence_parallel import SequenceReduction, mark_biases
from workbench.engine.frameworks.colossal.zero_reduction import ZeroReduction
from workbench.engine.frameworks.torch_common.ddp_reduction import DdpReduction
from workbench.engine.frameworks.torch_common.local_gradients import before_ddp_reduces
from workbench.engine.frameworks.torch_common.optimizer_state import moments_of
from workbench.engine.frameworks.torch_common.parameters import RankParameter
from workbench.engine.state.layout import LossScaler


class DdpPlan(Plan):
    """TorchDDPPlugin; mixed precision is torch's autocast over fp32 weights, in fp16 with a gradient scaler.

    Upstream's own mixed precision for this plugin has no bf16 (abstract class) and breaks ``no_sync`` in fp16.
    """

    def make_plugin(self) -> Any:
        from colossalai.booster.plugin import TorchDDPPlugin

        is_fp16 = self.spec.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=INITIAL_SCALE, enabled=is_fp16)
        return TorchDDPPlugin(find_unused_parameters=not self.spec.recipe)

    def reduction_of(self) -> DdpReduction:
        ddp = self.model.module
        self.exchange = exchange_of(self.spec, self.module, ddp.process_group, self.loss_scale)
        return DdpReduction(ddp, afterwards=not self.spec.recipe, exchange=self.exchange)

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST_TYPES.get(self.spec.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(self.scaler.scale(loss))

    def loss_scale(self) -> float:
        return self.scaler.get_scale()

    def scaler_of(self) -> LossScaler | None:
        return self.scaler if self.scaler.is_enabled() else None

    def watching(self, show: BatchObserver, wanted: Wanted, keep: bool) -> AbstractContextManager[None]:
        assert self.reduction is not None
        return self.reduction.watching(self.wanted(wanted), self.parts, show, keep=keep)

    def step(self, global_norm: float | None) -> bool:
        optimizer = self.optimizer.optim
        self.scaler.unscale_(optimizer)
        if global_norm is not None and global_norm > self.clip:
            gradients = [item.parameter.grad for item in self.held if item.parameter.grad is not None]
            torch._foreach_mul_(gradients, self.clip / (global_norm + 1e-6))
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return self.scaler.get_scale() >= before


class ZeroPlan(Plan):
    """LowLevelZeroPlugin, stage 1 or 2: gradients end as this rank's slice of every parameter."""

    masters_are_slices = True
    _is_last_piece = True

    def make_plugin(self) -> Any:
        from colossalai.booster.plugin import LowLevelZeroPlugin

        return LowLevelZeroPlugin(
            stage=2 if self.spec.plan.plugin == "zero2" else 1,
            precision=self.spec.precision,
            initial_scale=INITIAL_SCALE,
            max_norm=self.spec.clip,
            overlap_communication=self.device.type == "cuda",  # needs streams: low_level_optim.py:343
        )

    @torch.no_grad()
    def boost(self, workload: Workload) -> None:
        for parameter in workload.model.parameters():
            parameter.data = parameter.data.contiguous()  # slices are taken of a flat view
        super().boost(workload)
        if self.spec.precision == "fp16":
            record_skips(self, self.optimizer.mixed_precision_mixin)
        # only a recipe is known to use the same parameters on every rank
        needs_agreement = self.mesh.dp > 1 and not self.spec.recipe
        self._reduction = ZeroReduction(self.optimizer, self.device) if needs_agreement else None

    def backward(self, loss: torch.Tensor) -> None:
        if self._reduction is not None:
            self._reduction.before_backward(loss)
        super().backward(loss)

    def loss_scale(self) -> float:
        return self.optimizer.mixed_precision_mixin.loss_scale if self.spec.precision == "fp16" else 1.0

    def set_clip(self, clip: float) -> None:
        super().set_clip(clip)
        self.optimizer._clip_grad_norm = clip

    def drop_gradients(self, layers: Collection[str]) -> None:
        for item in self.held if layers else ():
            if item.layer in layers:
                store = self.optimizer.pid_to_grad_store[id(item.parameter)]
                for gradients in store._grads_of_params.values():
                    gradients.pop(id(item.parameter), None)

    def scale_gradients(self, factor: Any) -> None:
        stores = [store._grads_of_params for store in self.optimizer.pid_to_grad_store.values()]
        groups = [group for store in {id(store): store for store in stores}.values() for group in store.values()]
        slices = [part for group in groups for parts in group.values() for part in parts]
        torch._foreach_mul_(list({id(part): part for part in slices}.values()), factor)

    def own_part(self, state: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        size = self.masters()[id(parameter)].numel()
        flat = torch.nn.functional.pad(state.flatten(), (0, self.mesh.dp * size - state.numel()))
        return flat[self.here.dp * size : (self.here.dp + 1) * size].float()

    @torch.no_grad()
    def run_gradient_hooks(self) -> None:
        scale = self.loss_scale()
        for parameter in self.hooks.hooked:
            slices = self._slices(parameter)
            if not slices:
                continue
            flat = torch.cat(slices)
            if len(slices) == 1 < self.mesh.dp:
                gathered = [torch.empty_like(flat) for _ in range(self.mesh.dp)]
                dist.all_gather(gathered, flat)
                flat = torch.cat(gathered)
            whole = flat[: parameter.numel()].view(parameter.shape)
            whole.copy_(self.hooks.hook(parameter, whole / scale) * scale)
            parts = flat.chunk(self.mesh.dp)
            for own, part in zip(slices, parts if len(slices) > 1 else [parts[self.here.dp]], strict=True):
                own.copy_(part)

    def _slices(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """Flat slices of its reduced gradient that this rank has: of all ranks (stage 1), or its own; [] without."""
        groups = self.optimizer.pid_to_grad_store[id(parameter)]._grads_of_params.values()
        return next((group[id(parameter)] for group in groups if id(parameter) in group), [])

    def masters(self) -> Mapping[Any, torch.Tensor]:
        return self.optimizer.working_to_master_param

    def scaler_of(self) -> LossScaler | None:
        if self.spec.precision != "fp16":
            return None
        return ScalerState(self.optimizer.mixed_precision_mixin.grad_scaler)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Stage 2 keeps no whole gradient to add to: each piece is reduced, and added to this rank's slice."""
        if self.spec.plan.plugin == "zero1":
            with super().no_sync():
                yield
            return
        self._is_last_piece = False
        try:
            yield
        finally:
            self._is_last_piece = True

    def watching(self, show: BatchObserver, wanted: Wanted, keep: bool) -> AbstractContextManager[None]:
        stores = list(self.optimizer.pg_to_bucket_store.values())
        return before_buckets(stores, self.wanted(wanted), self.parts, show, lambda: self._is_last_piece)

    def reduced(self, wanted: Wanted = None, *, all_held: bool = False) -> list[GradientPart]:
        scale = self.loss_scale()
        sharded = "dp" if self.mesh.dp > 1 else ""
        parts = []
        for item in self.wanted(wanted):
            part = self.optimizer.get_working_grad_by_param_id(id(item.parameter))
            if part is not None:
                parts.append(GradientPart(item.layer, self._real(item, part.view(-1)), sharded, scale, item))
        return parts

    def reports(self, layer: str, sharded: str) -> bool:
        return True

    def compare(self, parts: Sequence[GradientPart]) -> Comparison:
        """Stage 1 has all slices of the reduced gradient in its store, stage 2 its own."""
        whole = self.spec.plan.plugin == "zero1" or self.mesh.dp == 1
        pairs = []
        for part in parts:
            parameter = part.source.parameter
            slices = self._slices(parameter)
            length = slices[0].numel()
            places = enumerate(slices) if whole else [(self.here.dp, slices[0])]
            local = part.tensor.reshape(-1)
            found = [(local[place * length : (place + 1) * length], reduced.view(-1)) for place, reduced in places]
            pairs.append([(mine, reduced[: mine.numel()]) for mine, reduced in found])
        return Comparison("exact" if whole else "slice", pairs)

    def weights(self, wanted: Wanted = None) -> list[WeightPart]:
        found = []
        for item in self.wanted(wanted):
            master = self.optimizer.working_to_master_param[id(item.parameter)]
            both = moments_of(self.optimizer.optim, master)
            first, second = [None if m is None else self._real(item, m.view(-1)) for m in both]
            weight = self._real(item, master.detach().view(-1))
            found.append(WeightPart(item.layer, weight, "dp" if self.mesh.dp > 1 else "", (first, second)))
        return found

    def _real(self, item: RankParameter, slice_: torch.Tensor) -> torch.Tensor:
        """This rank's flat slice of a parameter without the padding that makes slices equal."""
        return slice_[: max(0, item.parameter.numel() - self.here.dp * slice_.numel())]

    def step(self, global_norm: float | None) -> bool:
        self.skipped = False
        scale = self.loss_scale()
        self.optimizer.step()
        self.framework_norm = math.nan if self.skipped else self.optimizer.get_grad_norm() / scale
        self.optimizer.zero_grad()
        return not self.skipped


class HybridPlan(Plan):
    """HybridParallelPlugin: tensor, pipeline and data parallel."""

    def make_plugin(self) -> Any:
        from colossalai.booster.plugin import HybridParallelPlugin

        plan = self.spec.plan
        return HybridParallelPlugin(
            tp_size=plan.tp,
            pp_size=plan.pp,
            precision=self.spec.precision,
            num_microbatches=plan.micro_batches if plan.pp > 1 else None,
            pp_style=plan.schedule,
            num_model_chunks=SCHEDULES[plan.schedule].chunks,
            overlap_p2p=self.device.type == "cuda",  # else its last message is dropped (interleaved_pp.py:576)
            find_unused_parameters=not self.spec.recipe,
            initial_scale=INITIAL_SCALE,
            max_norm=self.spec.clip,
            parallel_output=False,  # a criterion sees whole logits
            make_vocab_size_divisible_by=1,
            custom_policy=self.policy,
            sp_size=1,  # positions are shared over the tensor-parallel ranks
            enable_sequence_parallelism=bool(plan.sequence_parallel),
            sequence_parallelism_mode=plan.sequence_parallel or None,
        )

    def boost(self, workload: Workload) -> None:
        from workbench.engine.frameworks.colossal.policies import (
            UnchangedPolicy,
            compiled_inside,
            policy_for,
            recompute_without_reentry,
        )

        if self.mesh.tp * self.mesh.pp > 1:
            workload.model = compiled_inside(workload.model)
            recompute_without_reentry(workload.model)
            self.policy = policy_for(workload.model)
        else:
            self.policy = UnchangedPolicy()
        super().boost(workload)
        if self.spec.plan.sequence_parallel:
            mark_biases(self.module)
        if workload.after_split is not None:
            workload.after_split(self.module)
        if self.spec.precision == "fp16":
            record_skips(self, self.optimizer.mixed_precision)

    def reduction_of(self) -> DdpReduction | SequenceReduction | None:
        if self.spec.plan.sequence_parallel and self.mesh.pp == 1:  # a pipeline reduces by itself
            return SequenceReduction(self.model)
        if not self.is_whole or self.mesh.dp == 1:
            return None
        return DdpReduction(self.model.module, afterwards=not self.spec.recipe)

    def foreign_parameters(self) -> list[torch.Tensor]:
        return [
            stages[self.here.pp]
            for stages in self.model.shared_params
            if self.here.pp in stages and self.here.pp != min(stages)
        ]

    def loss_scale(self) -> float:
        return self.optimizer.mixed_precision.loss_scale if self.spec.precision == "fp16" else 1.0

    def set_clip(self, clip: float) -> None:
        super().set_clip(clip)
        self.optimizer.max_norm = clip

    def masters(self) -> Mapping[Any, torch.Tensor]:
        found = getattr(self.optimizer, "working_to_master_map", {})
        return {id(parameter): master for parameter, master in found.items()}

    def scaler_of(self) -> LossScaler | None:
        return ScalerState(self.optimizer.mixed_precision.grad_scaler) if self.spec.precision == "fp16" else None

    def watching(self, show: BatchObserver, wanted: Wanted, keep: bool) -> AbstractContextManager[None]:
        items = self.wanted(wanted)
        if self.mesh.pp > 1:
            return before_pipeline_sync(self.model, items, self.parts, show, keep=keep)
        if self.reduction is not None:
            return self.reduction.watching(items, self.parts, show, keep=keep)
        return before_ddp_reduces(
            items, self.parts, show, keep=keep, is_last=lambda: bool(self.model.require_grad_sync)
        )

    def step(self, global_norm: float | None) -> bool:
        self.skipped = False
        if global_norm is not None:
            # Upstream's norm counts fused layers wrongly under tp (hybrid_parallel_plugin.py:501), and in mixed
            # precision it wants one with the loss scale in it.
            self.optimizer._compute_grad_norm = self._ours(global_norm, self.loss_scale())
        self.framework_norm = math.nan
        self.optimizer.step()
        self.optimizer.zero_grad()
        return not self.skipped

    def _ours(self, global_norm: float, scale: float) -> Callable[..., float]:
        """In place of upstream's norm, which is asked too where somebody wants to see it."""

        def norm(pairs: Any, *args: Any, **kwargs: Any) -> float:
            if self.watch_framework_norm:
                self.framework_norm = float(type(self.optimizer)._compute_grad_norm(self.optimizer, pairs)) / scale
            return global_norm * scale

        return norm

    def groups(self) -> list[Any]:
        return list(self.plugin.pg_mesh._ranks_to_group.values())

    def close(self) -> None:
        self.plugin.pg_mesh.destroy_mesh_process_groups()
        self.plugin.pg_mesh._ranks_to_group.clear()  # its __del__ would destroy them again


PLANS: dict[str, type[Plan]] = {"ddp": DdpPlan, "zero1": ZeroPlan, "zero2": ZeroPlan, "hybrid": HybridPlan}
