"""What a Colossal-AI plan holds, as a checkpoint keeps it: parameters, masters and generators by the user's names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from workbench.engine.state.layout import Held, Place, Slot, Target, persistent_buffers, place_of
from workbench.engine.state.randomness import randomizers_of

if TYPE_CHECKING:
    from workbench.engine.frameworks.colossal.plugin import Plan


class HeldStates:
    """Reads one boosted plan. Which rank saves a parameter goes round the replicas that hold the same."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._originals = plan.originals
        self._masters = plan.masters()
        self._foreign = {id(item.parameter) for item in plan.held if item.foreign}

    def held(self) -> Held:
        """What this rank holds: parameters, buffers, optimizer states, each with its place in the user's model."""
        plan, here = self._plan, self._plan.here
        buffers = {
            name: Target(tensor, Place.whole(tensor.shape)) for name, tensor in persistent_buffers(plan.module).items()
        }
        return Held(
            slots=list(self._slots()),
            buffers=buffers,
            saves_buffers=here.dp == 0 and here.tp == 0,
            optimizer=getattr(plan.optimizer, "optim", plan.optimizer),
            randomizers=randomizers_of(plan.module),
            scaler=plan.scaler_of(),
        )

    def _slots(self) -> Iterator[Slot]:
        seen: set[int] = set()
        for name, parameter in self._plan.module.named_parameters(remove_duplicate=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield self._slot(self._originals.name(name), parameter)

    def _slot(self, name: str, parameter: torch.nn.Parameter) -> Slot:
        place = place_of(parameter, self._originals.shapes[name], self._plan.here.tp)
        rows = sum(length for _, length in place.runs) if place.dim == 0 else None
        working = Target(parameter.detach() if rows is None else parameter.detach()[:rows], place)
        master = self._masters.get(id(parameter))
        mine = self._is_mine(name, place, id(parameter) in self._foreign)
        if master is None or master is parameter:
            return Slot(name, working, (), parameter, _rows(parameter, rows), mine)
        if master.shape == parameter.shape:
            whole = master.detach() if rows is None else master.detach()[:rows]
            return Slot(name, Target(whole, place), (working,), master, _rows(master, rows), mine)
        return self._slice(name, working, master)

    def _slice(self, name: str, working: Target, master: torch.Tensor) -> Slot:
        """ZeRO: this rank updates its part of the flattened parameter, the last rank's part ends in padding."""
        first = self._plan.here.dp * master.numel()
        real = max(0, min(master.numel(), working.tensor.numel() - first))
        place = Place(working.place.shape, None, ((first, real),))
        return Slot(name, Target(master.detach()[:real], place), (working,), master, real, real > 0)

    def _is_mine(self, name: str, place: Place, foreign: bool) -> bool:
        mesh, here = self._plan.mesh, self._plan.here
        turn = self._originals.order[name]
        if foreign or turn % mesh.dp != here.dp:
            return False
        return not place.is_whole or turn // mesh.dp % mesh.tp == here.tp


def _rows(tensor: torch.Tensor, rows: int | None) -> int:
    return rows if rows is not None else tensor.shape[0] if tensor.dim() else 1
