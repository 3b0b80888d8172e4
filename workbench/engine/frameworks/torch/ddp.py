"""torch's ``DistributedDataParallel``: each rank holds the whole model, and gradients are averaged over the ranks.

Mixed precision is torch's autocast over fp32 weights, in fp16 with a gradient scaler.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from workbench.core.config import TrainSpec
from workbench.engine.base.workload import Workload
from workbench.engine.communication.checks import check_exchange, exchange_of
from workbench.engine.frameworks.torch.native import FIRST_SCALE
from workbench.engine.frameworks.torch.whole_model import ReplicatedStrategy
from workbench.engine.frameworks.torch_common.ddp_reduction import DdpReduction
from workbench.engine.frameworks.torch_common.state_locator import StateLocator
from workbench.engine.state.layout import RankState


class DdpStrategy(ReplicatedStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        super().check(spec, workload)
        check_exchange(spec, workload)

    def _make_scaler(self) -> Any:
        is_fp16 = self.spec.precision == "fp16"
        return torch.amp.GradScaler(self.device.type, init_scale=FIRST_SCALE, enabled=is_fp16)

    def _distribute(self) -> None:
        self._share_out()
        self._mine = self._told
        self._shares = {(item.layer, item.sharded) for item in self._mine}
        # only a recipe is known to use all of its parameters in every step
        self.model = DistributedDataParallel(self._module, find_unused_parameters=not self.spec.recipe)
        self._exchange = exchange_of(self.spec, self._module, self.model.process_group, self.loss_scale)
        self._reduction = DdpReduction(self.model, afterwards=not self.spec.recipe, exchange=self._exchange)

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

    def reducer(self) -> DistributedDataParallel | None:
        """As ``DdpReduced.reducer``: what an algorithm sends is seen."""
        return self.model if self._exchange is None else None

    def rank_state(self) -> RankState:
        """As ``Checkpointable.rank_state``."""
        state = StateLocator(module=self._module, originals=self.originals, mesh=self.mesh, here=self.coordinates)
        scaler = self._scaler if self._scaler.is_enabled() else None
        return state.rank_state(self._optimizer, scaler=scaler, own=self._exchange.kept if self._exchange else {})

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
