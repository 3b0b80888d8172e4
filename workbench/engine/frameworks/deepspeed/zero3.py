"""DeepSpeed's ZeRO 3: weights are split too, and gathered module by module when these compute."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from workbench.engine.base.batch import Batch
from workbench.engine.base.names import users_name
from workbench.engine.base.parts import WeightMatrix
from workbench.engine.frameworks.deepspeed.sharded import GatheredOnly, ShardedPartitions, ShardedState, gathered
from workbench.engine.frameworks.deepspeed.strategy import ZeroStrategy
from workbench.engine.frameworks.torch.gathering import GatheringStrategy
from workbench.engine.frameworks.torch_common.losses.terms import LossTerm
from workbench.engine.state.layout import RankState

#: steps whose forward pass is looked at
_LOOKS = 3


class Zero3Strategy(GatheringStrategy, ZeroStrategy):
    """Loss, gradients and updates are those of one process with the global batch."""

    partitioned = ShardedPartitions

    def _distribute(self) -> None:
        #: the parts of weights may have been written since they were gathered
        self._is_stale = False
        self._looks_left = 1 + _LOOKS
        self._gathered_only = GatheredOnly(
            {users_name(name): parameter for name, parameter in self._module.named_parameters() if parameter.numel()}
        )
        super()._distribute()

    def forward_backward(self, pieces: Sequence[Batch]) -> torch.Tensor:
        self._refresh()
        self._looks_left = max(0, self._looks_left - 1)
        return super().forward_backward(pieces)

    def _term(self, batch: Batch, samples: int) -> LossTerm:
        with self._gathered_only if self._looks_left and not self._is_gathered else nullcontext():
            return super()._term(batch, samples)

    def _refresh(self) -> None:
        if self._is_stale:
            self._partitions.release()
            self._is_stale = False

    def skip(self) -> None:
        self._zero.zero_grad(set_to_none=True)
        self._zero._offload_boundary_param_ids.clear()
        if self._zero.offload_optimizer:
            self._zero.reset_cpu_buffers()
        self._zero.averaged_gradients = {}

    def weight_matrices(self) -> list[WeightMatrix]:
        """As ``Shaped.weight_matrices``: collective, as a flat part of a weight is no part of a matrix."""
        with self.gathered():
            found = [item.matrix_of(item.parameter.detach().clone(), None) for item in self._told]
        return [matrix for matrix in found if matrix is not None]

    def rank_state(self) -> RankState:
        """As ``Checkpointable.rank_state``."""
        self._is_stale = True
        state = ShardedState(
            module=self._module,
            originals=self.originals,
            optimizer=self._optimizer,
            partitions=self._partitions,
            is_first=self.coordinates.dp == 0,
        )
        return state.rank_state(self._scaler if self._scaler.is_enabled() else None)

    def _gather(self) -> AbstractContextManager[None]:
        return gathered(self._zero, self._module.parameters())
