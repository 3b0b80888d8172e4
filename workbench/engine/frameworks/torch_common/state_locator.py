"""What a rank holds of a torch training, as a checkpoint keeps it: parameters and masters by the user's names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.core.mesh import Coordinates, Mesh
from workbench.engine.base.tensor import local_part
from workbench.engine.state.layout import Originals, Place, RankState, Slot, Target, place_of, whole_buffers


@dataclass(frozen=True, kw_only=True)
class StateLocator:
    """Where the parts of a training's state are on this rank. Which rank saves a parameter goes round the replicas
    that hold the same.

    ``module``: the user's, as the framework left it; ``originals``: its names and shapes before. ``masters``:
    parameter's id -> the fp32 tensor that the optimizer updates in its stead; ``masters_are_slices``: a flat slice of
    it per replica (ZeRO), else a tensor of the parameter's shape. ``foreign``: ids of parameters that another rank
    saves. ``places``: of parameters that are cut as DTensors, by name.
    """

    module: torch.nn.Module
    originals: Originals
    mesh: Mesh
    here: Coordinates
    masters: Mapping[int, torch.Tensor] = field(default_factory=dict)
    masters_are_slices: bool = False
    foreign: Collection[int] = ()
    places: Mapping[str, Place] = field(default_factory=dict)

    def rank_state(self, optimizer: torch.optim.Optimizer, **others: Any) -> RankState:
        """What this rank holds: parameters, buffers, optimizer states, each with its place in the user's model.
        ``others``: the ``generators`` and the ``scaler`` of ``RankState``."""
        return RankState(
            slots=list(self._slots()),
            buffers=whole_buffers(self.module),
            saves_buffers=self.here.dp == 0 and self.here.leads,
            optimizer=optimizer,
            tied=self.originals.tied,
            **others,
        )

    def _slots(self) -> Iterator[Slot]:
        seen: set[int] = set()
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield self._slot(self.originals.name(name), parameter)

    def _slot(self, name: str, parameter: torch.nn.Parameter) -> Slot:
        local: torch.Tensor = local_part(parameter.detach())
        place = self.places.get(name) or place_of(local, self.originals.shapes[name], self.here.tp)
        rows = sum(length for _, length in place.runs) if place.dim == 0 else None
        working = Target(local if rows is None else local[:rows], place)
        master = self.masters.get(id(parameter))
        mine = self._is_mine(name, place, id(parameter) in self.foreign)
        if master is None or master is parameter:
            return Slot(name, working, (), parameter, _rows(local, rows), mine)
        if not self.masters_are_slices:
            whole = master.detach() if rows is None else master.detach()[:rows]
            return Slot(name, Target(whole, place), (working,), master, _rows(master, rows), mine)
        counts = id(parameter) not in self.foreign and self._is_mine_of_peers(name, place)
        return self._slice(name, working, master, counts)

    def _slice(self, name: str, working: Target, master: torch.Tensor, counts: bool) -> Slot:
        """ZeRO: this rank updates its part of the flattened parameter, the last rank's part ends in padding.
        ``counts``: its part is not that of another rank."""
        first = self.here.dp * master.numel()
        real = max(0, min(master.numel(), working.tensor.numel() - first))
        place = working.place.slice_of(first, real)
        return Slot(name, Target(master.detach()[:real], place), (working,), master, real, real > 0 and counts)

    def _is_mine(self, name: str, place: Place, foreign: bool) -> bool:
        if foreign or self.originals.order[name] % self.mesh.dp != self.here.dp:
            return False
        return self._is_mine_of_peers(name, place)

    def _is_mine_of_peers(self, name: str, place: Place) -> bool:
        """Whether this rank saves what it holds, of the ranks of its replica that may hold the same."""
        turn = self.originals.order[name] // self.mesh.dp
        if place.is_whole:
            return turn % self.mesh.peers == self.mesh.peer(self.here)
        return turn % self.mesh.cp == self.here.cp


def _rows(tensor: torch.Tensor, rows: int | None) -> int:
    return rows if rows is not None else tensor.shape[0] if tensor.dim() else 1
