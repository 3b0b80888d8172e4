"""Colossal-AI's low-level ZeRO, stages 1 and 2."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist

from workbench.engine.base.parts import BatchObserver, Comparison, GradientPart, WeightPart
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.colossal.local_gradients import before_buckets
from workbench.engine.frameworks.colossal.module_state import ScalerState
from workbench.engine.frameworks.colossal.plugin import Plan, Wanted, is_in, record_skips
from workbench.engine.frameworks.colossal.zero.reduction import ZeroReduction
from workbench.engine.frameworks.torch_common.optimizer_state import moments_of
from workbench.engine.frameworks.torch_common.parameters import RankParameter
from workbench.engine.state.layout import LossScaler


class ZeroPlan(Plan):
    """LowLevelZeroPlugin, stage 1 or 2: gradients end as this rank's slice of every parameter."""

    masters_are_slices = True
    _is_last_piece = True

    def make_plugin(self) -> Any:
        from colossalai.booster.plugin import LowLevelZeroPlugin

        return LowLevelZeroPlugin(
            stage=2 if self.spec.plan.plugin == "zero2" else 1,
            precision=self.spec.precision,
            initial_scale=self.initial_scale,
            max_norm=self.spec.clip,
            cpu_offload=self.spec.plan.offload,
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
        self._reduction = ZeroReduction(self.optimizer, self.device, self.replicas()) if needs_agreement else None
        turns = {layer: turn for turn, layer in enumerate(self.names.layers)}
        self._axes = {id(item.parameter): self._split_over(item) for item in self.held}
        self._counted = [item for item in self.held if not item.foreign]
        self._told = [
            item for item in self._counted if item.sharded or turns[item.layer] % self.mesh.tp == self.here.tp
        ]

    def replicas(self) -> Any:
        """The process group of the ranks that hold the same part of the model."""
        return dist.group.WORLD

    def _split_over(self, item: RankParameter) -> str:
        """The mesh axes over which the optimizer's state of a parameter is split: "", "dp", "tp" or "dp+tp"."""
        return "+".join(axis for axis in ("dp" if self.mesh.dp > 1 else "", item.sharded) if axis)

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
                dist.all_gather(gathered, flat, group=self.replicas())
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
        parts = []
        for item in self._counted if all_held else self._told:
            part = (
                self.optimizer.get_working_grad_by_param_id(id(item.parameter)) if is_in(item.layer, wanted) else None
            )
            if part is not None:
                axes = self._axes[id(item.parameter)]
                parts.append(GradientPart(item.layer, self._real(item, part.view(-1)), axes, scale, item))
        return parts

    def reports(self, layer: str, sharded: str) -> bool:
        return (layer, sharded) in {(item.layer, self._axes[id(item.parameter)]) for item in self._told}

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
        for item in self._told:
            if not is_in(item.layer, wanted):
                continue
            master = self.optimizer.working_to_master_param[id(item.parameter)]
            both = moments_of(self.optimizer.optim, master)
            first, second = [None if m is None else self._real(item, m.view(-1)) for m in both]
            weight = self._real(item, master.detach().view(-1))
            found.append(WeightPart(item.layer, weight, self._axes[id(item.parameter)], (first, second)))
        return found

    def _real(self, item: RankParameter, slice_: torch.Tensor) -> torch.Tensor:
        """This rank's flat slice of a parameter without padding: that which makes slices equal, and of a vocabulary."""
        shape = item.parameter.shape
        real = item.rows * math.prod(shape[1:]) if shape else 1
        return slice_[: max(0, real - self.here.dp * slice_.numel())]

    def step(self, global_norm: float | None) -> bool:
        self.skipped = False
        scale = self.loss_scale()
        self.optimizer.step()
        self.framework_norm = math.nan if self.skipped else self.optimizer.get_grad_norm() / scale
        self.optimizer.zero_grad()
        return not self.skipped
