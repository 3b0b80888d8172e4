"""Which elements of each parameter a rank holds under FSDP2: of what tensor parallelism leaves it of the parameter, the
rows that ``torch.chunk`` gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch

from workbench.core.mesh import Coordinates, Mesh
from workbench.engine.base.tensor import local_part
from workbench.engine.frameworks.torch.tensor_parallel.parallelize import Cut
from workbench.engine.state.layout import (
    LossScaler,
    Originals,
    Place,
    RankState,
    Slot,
    Target,
    part_of,
    whole_buffers,
)


class ShardPlaces:
    """The places of this rank's shards. ``shapes``: those of whole parameters, by name.

    ``replicate``: the data-parallel ranks form so many groups of neighbours, each of which holds all shards. ``cuts``:
    what tensor parallelism leaves this rank of the parameters that it cuts.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        mesh: Mesh,
        here: Coordinates,
        *,
        replicate: int = 1,
        cuts: Mapping[str, Cut] = MappingProxyType({}),
    ) -> None:
        self._shapes = shapes
        self._shards = mesh.dp // replicate
        self._group, self._shard = divmod(here.dp, self._shards)
        self._groups = replicate
        self._cuts = cuts
        self._tp, self._tp_rank = mesh.tp, here.tp

    def axes(self, name: str) -> str:
        """The mesh axes over which a parameter is split: "", "dp", "tp" or "dp+tp"."""
        is_split = {"dp": self._shards * self._groups > 1, "tp": name in self._cuts}
        return "+".join(axis for axis, split in is_split.items() if split)

    def place(self, name: str) -> Place:
        """Where this rank's shard of a parameter lies in the whole one."""
        shape, cut = tuple(self._shapes[name]), self._cuts.get(name)
        if cut is None:
            return Place(shape, 0, (self._rows(shape[0]),))
        if cut.dim == 0:
            own = sum(length for _, length in cut.runs)
            return Place(shape, 0, part_of(cut.runs, *self._rows(own)))
        if self._shards == 1:
            return Place(shape, cut.dim, cut.runs)
        first, length = self._rows(shape[0])
        whole = Place(shape, cut.dim, cut.runs)
        of_row = whole.numel // shape[0]
        return whole.slice_of(first * of_row, length * of_row)

    def _rows(self, rows: int) -> tuple[int, int]:
        """First row and number of rows of this rank's shard."""
        size = -(-rows // self._shards)
        first = min(rows, self._shard * size)
        return first, min(rows, first + size) - first

    def rows_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's shard of a tensor that is whole along the data-parallel axis."""
        first, length = self._rows(tensor.shape[0])
        return tensor[first : first + length]

    def is_counted_here(self, name: str, turn: int) -> bool:
        """Whether this rank, of the tensor-parallel ones that have the same shard, is the one that counts it."""
        return name in self._cuts or turn % self._tp == self._tp_rank

    @property
    def is_first_group(self) -> bool:
        """Whether this rank is in the first of the groups that each hold all shards."""
        return self._group == 0

    def told(self, local: torch.Tensor) -> torch.Tensor:
        """What this rank tells of a shard: all of it, or the share of its group, so that each element is told once."""
        if self._groups == 1:
            return local
        flat = local.reshape(-1)
        size = -(-flat.numel() // self._groups)
        return flat[self._group * size : (self._group + 1) * size]

    def split_dims(self, name: str) -> set[int]:
        """The dims along which the ranks of one group, tensor-parallel ones among them, split a parameter."""
        cut = self._cuts.get(name)
        return ({0} if self._shards > 1 else set()) | ({cut.dim} if cut is not None else set())

    def rank_state(
        self,
        module: torch.nn.Module,
        originals: Originals,
        optimizer: torch.optim.Optimizer,
        scaler: LossScaler | None,
    ) -> RankState:
        """What a checkpoint keeps of this rank."""
        return RankState(
            slots=list(self._slots(module, originals)),
            buffers=whole_buffers(module),
            saves_buffers=self._group == 0 and self._shard == 0 and self._tp_rank == 0,
            optimizer=optimizer,
            scaler=scaler,
            tied=originals.tied,
        )

    def _slots(self, module: torch.nn.Module, originals: Originals) -> Iterator[Slot]:
        for name, parameter in module.named_parameters():
            own = originals.name(name)
            place, local = self.place(own), local_part(parameter.detach())
            turn = originals.order[own]
            mine = place.numel > 0 and turn % self._groups == self._group and self.is_counted_here(own, turn)
            yield Slot(own, Target(local, place), (), parameter, len(local), mine)
