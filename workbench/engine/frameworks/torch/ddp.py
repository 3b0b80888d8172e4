"""torch's ``DistributedDataParallel``: each rank holds the whole model, and gradients are averaged over the ranks.

Mixed precision is torch's autocast over fp32 weights, in fp16 with a gradient scaler.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from workbench.core.config import TrainSpec
from workbench.engine.base.batch import Batch
from workbench.engine.base.workload import Workload
from workbench.engine.communication.checks import check_exchange, exchange_of, weight_exchange_of
from workbench.engine.frameworks.torch.native import FIRST_SCALE
from workbench.engine.frameworks.torch.whole_model import ReplicatedStrategy
from workbench.engine.frameworks.torch_common.ddp_reduction import DdpReduction
from workbench.engine.frameworks.torch_common.parameters import RankParameter
from workbench.engine.frameworks.torch_common.state_locator import StateLocator
from workbench.engine.state.layout import RankState
from workbench.engine.watch.torch import tensor_statistics as figures


class DdpStrategy(ReplicatedStrategy):
    """Loss, gradients and updates are those of one process with the global batch; with an algorithm of local steps each
    rank's own, with gradients whose mean over the ranks is that of the global batch."""

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
        self._weights = weight_exchange_of(self.spec, self._module, self.model.process_group)
        self._reduction = DdpReduction(
            self.model,
            afterwards=not self.spec.recipe,
            exchange=self._exchange,
            weights=self._weights,
            in_sight=bool(self.spec.network),
        )

    def forward_backward(self, pieces: Sequence[Batch]) -> torch.Tensor:
        if self._weights is not None:
            self._weights.begin_step()
        return super().forward_backward(pieces)

    def is_alone(self) -> bool:
        """As ``LocallyUpdated.is_alone``."""
        return self._weights is not None and self._weights.is_alone

    def exchanges_weights(self) -> bool:
        """As ``LocallyUpdated.exchanges_weights``."""
        return self._weights is not None and self._weights.is_due

    def averaged(self) -> AbstractContextManager[None]:
        """As ``LocallyUpdated.averaged``."""
        return nullcontext() if self._weights is None else self._weights.averaged()

    def _check_weights(self, items: list[RankParameter], before: list[int], what: str) -> None:
        if not self.is_alone():  # else ranks hold other weights in any case
            super()._check_weights(items, before, what)

    def grad_sq(self) -> torch.Tensor:
        """As ``Normed.grad_sq``. Of ranks that step by themselves, the sum is the mean square of their norms."""
        if not self.is_alone():
            return super().grad_sq()
        if self._part_norms is None:
            self._part_norms = figures.part_norms(self._parts(self._held), self.device)
        return self._part_norms.squared() / self.mesh.dp

    def _global_norm(self) -> float:
        return math.sqrt(self.grad_sq().item() * self.mesh.dp) if self.is_alone() else super()._global_norm()

    def step(self) -> bool:
        updated = self._update()
        self._exchange_weights()
        return updated

    def skip(self) -> None:
        super().skip()
        self._exchange_weights()

    def _exchange_weights(self) -> None:
        if self._weights is not None:
            frozen = {id(item.parameter) for item in self._held if item.layer in self._frozen}
            self._weights.end_step(frozen)

    def _update(self) -> bool:
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
        """As ``DdpReduced.reducer``: what an algorithm sends, or goes over an emulated network, is seen."""
        return self.model if self._exchange is None and not self.spec.network else None

    def rank_state(self) -> RankState:
        """As ``Checkpointable.rank_state``."""
        state = StateLocator(module=self._module, originals=self.originals, mesh=self.mesh, here=self.coordinates)
        scaler = self._scaler if self._scaler.is_enabled() else None
        exchange = self._exchange or self._weights
        return state.rank_state(
            self._optimizer,
            scaler=scaler,
            own=exchange.kept if exchange is not None else {},
            apart=self._weights.own if self._weights is not None else None,
        )

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
