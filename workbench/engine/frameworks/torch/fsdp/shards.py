"""Which elements of each parameter a rank holds under FSDP2: the rows that ``torch.chunk`` gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from workbench.core.mesh import Coordinates, Mesh
from workbench.engine.base.tensor import local_part
from workbench.engine.state.layout import (
    LossScaler,
    Originals,
    Place,
    RankState,
    Slot,
    Target,
    persistent_buffers,
)


class ShardPlaces:
    """The places of this rank's shards. ``shapes``: those of whole parameters, by name.

    ``replicate``: the data-parallel ranks form so many groups of neighbours, each of which holds all shards.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], mesh: Mesh, here: Coordinates, *, replicate: int = 1
    ) -> None:
        self._shapes = shapes
        self._shards = mesh.dp // replicate
        self._group, self._shard = divmod(here.dp, self._shards)
        self._groups = replicate

    def place(self, name: str) -> Place:
        """Where this rank's shard of a parameter lies in the whole one."""
        shape = self._shapes[name]
        return Place(tuple(shape), 0, (self._rows(shape[0]),))

    def _rows(self, rows: int) -> tuple[int, int]:
        """First row and number of rows of this rank's shard."""
        size = -(-rows // self._shards)
        first = min(rows, self._shard * size)
        return first, min(rows, first + size) - first

    def told(self, local: torch.Tensor) -> torch.Tensor:
        """What this rank tells of a shard: all of it, or the share of its group, so that each element is told once."""
        if self._groups == 1:
            return local
        flat = local.reshape(-1)
        size = -(-flat.numel() // self._groups)
        return flat[self._group * size : (self._group + 1) * size]

    def rank_state(
        self,
        module: torch.nn.Module,
        originals: Originals,
        optimizer: torch.optim.Optimizer,
        scaler: LossScaler | None,
    ) -> RankState:
        """What a checkpoint keeps of this rank."""
        buffers = {
            name: Target(tensor, Place.whole(tensor.shape)) for name, tensor in persistent_buffers(module).items()
        }
        return RankState(
            slots=list(self._slots(module, originals)),
            buffers=buffers,
            saves_buffers=self._group == 0 and self._shard == 0,
            optimizer=optimizer,
            scaler=scaler,
        )

    def _slots(self, module: torch.nn.Module, originals: Originals) -> Iterator[Slot]:
        for name, parameter in module.named_parameters():
            own = originals.name(name)
            place, local = self.place(own), local_part(parameter.detach())
            mine = place.numel > 0 and originals.order[own] % self._groups == self._group
            yield Slot(own, Target(local, place), (), parameter, len(local), mine)
