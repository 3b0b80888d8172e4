"""What a rank holds of a training under DeepSpeed's ZeRO, as a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch

from workbench.core.mesh import Coordinates, Mesh
from workbench.engine.frameworks.deepspeed.partitions import Partitions
from workbench.engine.state.layout import LossScaler, Originals, Place, RankState, Slot, Target, whole_buffers


@dataclass(frozen=True, kw_only=True)
class PartitionedState:
    """``module``: the user's, as the engine left it; ``originals``: its names and shapes before. ``optimizer`` updates
    the pieces of this rank. ``updated``: ids of the parameters of which ranks have pieces."""

    module: torch.nn.Module
    originals: Originals
    mesh: Mesh
    here: Coordinates
    optimizer: torch.optim.Optimizer
    partitions: Partitions
    updated: Collection[int]

    def rank_state(self, scaler: LossScaler | None) -> RankState:
        """As ``Checkpointable.rank_state``."""
        return RankState(
            slots=list(self._slots()),
            buffers=whole_buffers(self.module),
            saves_buffers=self.here.dp == 0,
            optimizer=self.optimizer,
            scaler=scaler,
            tied=self.originals.tied,
        )

    def _slots(self) -> Iterator[Slot]:
        for name, parameter in self.module.named_parameters():
            own = self.originals.name(name)
            shape = tuple(self.originals.shapes[own])
            whole = Target(parameter.detach(), Place.whole(shape))
            fragment = self.partitions.fragment(parameter)
            if fragment is not None:
                piece = Target(fragment.weight.detach(), Place(shape, None, ((fragment.first, fragment.numel),)))
                yield Slot(own, piece, (whole,), fragment.weight, fragment.numel, True)
            elif id(parameter) in self.updated:  # by another rank
                nothing = torch.empty(0, device=parameter.device)
                yield Slot(own, Target(nothing, Place(shape, None, ((0, 0),))), (whole,), nothing, 0, False)
            else:
                mine = self.originals.order[own] % self.mesh.dp == self.here.dp
                yield Slot(own, whole, (), parameter, len(parameter) if shape else 1, mine)
