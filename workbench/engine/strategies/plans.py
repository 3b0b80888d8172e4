"""What differs between Colossal-AI's plugins: one small class each, all with the same verbs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from colossalai.booster import Booster

from workbench.config import TrainSpec
from workbench.engine.strategies.base import GradientObserver, GradientPart
from workbench.engine.strategies.held import Held, Originals
from workbench.engine.strategies.holding import HeldStates
from workbench.engine.strategies.parameters import HeldParameter, ModelNames, held_parameters, share_of_replicas
from workbench.engine.workload import Workload
from workbench.mesh import Coordinates

#: first loss scale in fp16. Upstream's defaults (2**16, 2**32) skip so many steps that short runs learn less.
INITIAL_SCALE = 2.0**10
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Plan(ABC):
    """A workload boosted by one plugin: ``model`` and ``optimizer`` are the wrapped ones, ``module`` the user's."""

    def __init__(self, spec: TrainSpec, here: Coordinates, device: torch.device) -> None:
        self.spec = spec
        self.here = here
        self.mesh = spec.plan.mesh
        self.device = device
        self.skipped = False
        self.clip = spec.clip

    def boost(self, workload: Workload) -> None:
        """Wrap model and optimizer. Collective."""
        names = self.names = ModelNames(workload.model)
        self.originals = Originals(workload.model)
        self.plugin = self.make_plugin()
        self.booster = Booster(plugin=self.plugin)
        self.model, self.optimizer, *_ = self.booster.boost(workload.model, workload.optimizer)
        self.module: torch.nn.Module = self.model.unwrap()
        self.held = held_parameters(
            self.module, names, tp=self.here.tp, tp_size=self.mesh.tp, foreign=self.foreign_parameters()
        )
        turns = {layer: turn for turn, layer in enumerate(names.layers)}
        self.mine = share_of_replicas(self.held, turns, self.mesh, self.here)

    @abstractmethod
    def make_plugin(self) -> Any:
        """The Colossal-AI plugin for the spec."""

    def foreign_parameters(self) -> list[torch.Tensor]:
        """Tied parameters that an earlier pipeline stage counts."""
        return []

    def autocast(self) -> AbstractContextManager[Any]:
        """Around forward pass and loss."""
        return nullcontext()

    def cast(self, batch: Any) -> Any:
        """``batch`` as the model itself takes it (what the wrapper does to its inputs)."""
        convert = getattr(self.model, "convert_fn", None)
        return batch if convert is None else torch.utils._pytree.tree_map(convert, batch)

    def no_sync(self) -> AbstractContextManager[Any]:
        """Around pieces whose gradients are only accumulated."""
        return self.booster.no_sync(self.model, self.optimizer)

    def backward(self, loss: torch.Tensor) -> None:
        self.booster.backward(loss, self.optimizer)

    def loss_scale(self) -> float:
        """What gradients are still multiplied by."""
        return 1.0

    @abstractmethod
    def watching(self, observe: GradientObserver) -> AbstractContextManager[None]:
        """While entered, backward shows ``observe`` the local gradients."""

    def reduced(self) -> list[GradientPart]:
        """This rank's share of the reduced gradient: over all ranks, each element once."""
        scale = self.loss_scale()
        return [
            GradientPart(item.layer, item.real(item.parameter.grad), item.sharded, scale)
            for item in self.mine
            if item.parameter.grad is not None
        ]

    def set_clip(self, clip: float) -> None:
        """Clip to this global norm from the next step on; 0: not at all."""
        self.clip = clip

    def drop_gradients(self, layers: Collection[str]) -> None:
        """Forget the reduced gradient of these layers, so that nothing updates them. Every rank calls it."""
        for item in self.held if layers else ():
            if item.layer in layers:
                item.parameter.grad = None

    def held_state(self) -> Held:
        """What a checkpoint keeps of this rank."""
        return HeldStates(self).held()

    def masters(self) -> Mapping[Any, torch.Tensor]:
        """Parameter's id -> the fp32 tensor that the optimizer updates in its stead, shaped alike; empty: itself."""
        return {}

    def scaler_of(self) -> Any:
        """What holds the fp16 loss scale; None without one."""
        return None

    @abstractmethod
    def step(self, global_norm: float | None) -> bool:
        """Clip to ``clip`` (``global_norm`` is given then), update, clear gradients. False: skipped."""

    def groups(self) -> list[Any]:
        """Process groups that the plugin made."""
        return []

    def close(self) -> None:
        """Destroy them."""
        return

    def _show(self, observe: GradientObserver, items: list[HeldParameter]) -> None:
        scale = self.loss_scale()
        for item in items:
            if item.parameter.grad is not None and not item.foreign:
                observe(GradientPart(item.layer, item.real(item.parameter.grad), item.sharded, scale))

    @contextmanager
    def _before_ddp_reduces(self, observe: GradientObserver, is_last: Callable[[], bool]) -> Iterator[None]:
        """Under torch's DDP every ``p.grad`` is still local in a callback queued by the first gradient of a backward
        pass: DDP copies the reduced ones there in a callback of its own, which runs later."""
        queued = False

        def look() -> None:
            nonlocal queued
            queued = False
            if is_last():
                self._show(observe, self.held)

        def first(parameter: torch.Tensor) -> None:
            nonlocal queued
            if not queued:
                queued = True
                torch.autograd.Variable._execution_engine.queue_callback(look)

        handles = [item.parameter.register_post_accumulate_grad_hook(first) for item in self.held]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class DdpPlan(Plan):
    """TorchDDPPlugin; mixed precision is torch's autocast over fp32 weights, in fp16 with a gradient scaler.

    Upstream's own mixed precision for this plugin has no bf16 (abstract class) and breaks ``no_sync`` in fp16.
    """

    def make_plugin(self) -> Any:
        from colossalai.booster.plugin import TorchDDPPlugin

        is_fp16 = self.spec.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=INITIAL_SCALE, enabled=is_fp16)
        return TorchDDPPlugin()

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST_TYPES.get(self.spec.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(self.scaler.scale(loss))

    def loss_scale(self) -> float:
        return self.scaler.get_scale()

    def scaler_of(self) -> Any:
        return self.scaler if self.scaler.is_enabled() else None

    def watching(self, observe: GradientObserver) -> AbstractContextManager[None]:
        return self._before_ddp_reduces(observe, lambda: self.model.module.require_backward_grad_sync)

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


def _record_skips(plan: Plan, mixin: Any) -> None:
    """Let ``plan.skipped`` say whether the last step was dropped: upstream's ``step`` returns nothing."""
    should_skip = mixin.should_skip_step

    def recorded() -> bool:
        plan.skipped = should_skip()
        return plan.skipped

    mixin.should_skip_step = recorded


class ZeroPlan(Plan):
    """LowLevelZeroPlugin, stage 1 or 2: gradients end as this rank's slice of every parameter."""

    def make_plugin(self) -> Any:
        from colossalai.booster.plugin import LowLevelZeroPlugin

        return LowLevelZeroPlugin(
            stage=2 if self.spec.plan.plugin == "zero2" else 1,
            precision=self.spec.precision,
            initial_scale=INITIAL_SCALE,
            max_norm=self.spec.clip,
            overlap_communication=self.device.type == "cuda",  # needs streams: low_level_optim.py:343
        )

    def boost(self, workload: Workload) -> None:
        super().boost(workload)
        if self.spec.precision == "fp16":
            _record_skips(self, self.optimizer.mixed_precision_mixin)

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

    def masters(self) -> Mapping[Any, torch.Tensor]:
        return self.optimizer.working_to_master_param

    def scaler_of(self) -> Any:
        return self.optimizer.mixed_precision_mixin.grad_scaler if self.spec.precision == "fp16" else None

    @contextmanager
    def watching(self, observe: GradientObserver) -> Iterator[None]:
        by_id = {id(item.parameter): item for item in self.held}
        stores = list(self.optimizer.pg_to_bucket_store.values())
        for store in stores:

            def build(store: Any = store, build: Callable[[], None] = store.build_grad_in_bucket) -> None:
                self._show(observe, [by_id[id(parameter)] for parameter in store._param_list])
                build()

            store.build_grad_in_bucket = build
        try:
            yield
        finally:
            for store in stores:
                del store.build_grad_in_bucket  # the class's own again

    def reduced(self) -> list[GradientPart]:
        scale = self.loss_scale()
        parts = []
        for item in self.held:
            part = self.optimizer.get_working_grad_by_param_id(id(item.parameter))
            if part is not None:
                real = min(part.numel(), max(0, item.parameter.numel() - self.here.dp * part.numel()))
                parts.append(GradientPart(item.layer, part.view(-1)[:real], "dp" if self.mesh.dp > 1 else "", scale))
        return parts

    def step(self, global_norm: float | None) -> bool:
        self.skipped = False
        self.optimizer.step()
        self.optimizer.zero_grad()
        return not self.skipped


class HybridPlan(Plan):
    """HybridParallelPlugin: tensor, pipeline (1F1B) and data parallel."""

    def make_plugin(self) -> Any:
        from colossalai.booster.plugin import HybridParallelPlugin

        plan = self.spec.plan
        return HybridParallelPlugin(
            tp_size=plan.tp,
            pp_size=plan.pp,
            precision=self.spec.precision,
            num_microbatches=plan.micro_batches if plan.pp > 1 else None,
            initial_scale=INITIAL_SCALE,
            max_norm=self.spec.clip,
            parallel_output=False,  # a criterion sees whole logits
            make_vocab_size_divisible_by=1,
            custom_policy=self.policy,
        )

    def boost(self, workload: Workload) -> None:
        from workbench.engine.strategies.policies import policy_for

        self.policy = policy_for(workload.model, self.spec)
        super().boost(workload)
        if self.spec.precision == "fp16":
            _record_skips(self, self.optimizer.mixed_precision)

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

    def scaler_of(self) -> Any:
        return self.optimizer.mixed_precision.grad_scaler if self.spec.precision == "fp16" else None

    def watching(self, observe: GradientObserver) -> AbstractContextManager[None]:
        if self.mesh.pp > 1:
            return self._before_sync(observe)
        return self._before_ddp_reduces(observe, lambda: self.model.require_grad_sync)

    @contextmanager
    def _before_sync(self, observe: GradientObserver) -> Iterator[None]:
        """A pipeline reduces after all micro-batches, tied parameters across stages first, then across replicas."""
        sync = self.model.sync_dp_grads

        def look_and_sync() -> None:
            self._show(observe, self.held)
            sync()

        self.model.sync_dp_grads = look_and_sync
        try:
            yield
        finally:
            del self.model.sync_dp_grads

    def step(self, global_norm: float | None) -> bool:
        self.skipped = False
        if global_norm is not None:
            # Upstream's norm counts fused layers wrongly under tp (hybrid_parallel_plugin.py:501), and in mixed
            # precision it wants one with the loss scale in it.
            scaled = global_norm * self.loss_scale()
            self.optimizer._compute_grad_norm = lambda *args, **kwargs: scaled
        self.optimizer.step()
        self.optimizer.zero_grad()
        return not self.skipped

    def groups(self) -> list[Any]:
        return list(self.plugin.pg_mesh._ranks_to_group.values())

    def close(self) -> None:
        self.plugin.pg_mesh.destroy_mesh_process_groups()
        self.plugin.pg_mesh._ranks_to_group.clear()  # its __del__ would destroy them again


PLANS: dict[str, type[Plan]] = {"ddp": DdpPlan, "zero1": ZeroPlan, "zero2": ZeroPlan, "hybrid": HybridPlan}
