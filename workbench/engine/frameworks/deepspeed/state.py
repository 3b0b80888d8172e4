"""What a rank holds of a training under DeepSpeed's ZeRO, as a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.core.mesh import Coordinates, Mesh
from workbench.engine.frameworks.deepspeed.partitions import FragmentedOptimizer, FragmentStates, Partitions
from workbench.engine.state.layout import LossScaler, Originals, Place, RankState, Slot, Target, persistent_buffers


@dataclass(kw_only=True)
class PartitionedState:
    """``module``: the user's, as the engine left it; ``originals``: its names and shapes before. ``stepped``: the
    user's optimizer, which DeepSpeed's steps. ``groups``: the parameters of its groups."""

    module: torch.nn.Module
    originals: Originals
    mesh: Mesh
    here: Coordinates
    stepped: torch.optim.Optimizer
    partitions: Partitions
    groups: list[list[torch.nn.Parameter]]

    def __post_init__(self) -> None:
        #: what stands for the weight of a parameter of which this rank has nothing
        self._nothing = {
            id(parameter): torch.empty(0, device=parameter.device)
            for group in self.groups
            for parameter in group
            if self.partitions.fragment(parameter) is None
        }

    def _key(self, parameter: torch.Tensor) -> torch.Tensor:
        found = self.partitions.fragment(parameter)
        return self._nothing[id(parameter)] if found is None else found.weight

    def optimizer(self) -> FragmentedOptimizer:
        """The optimizer with parameters and state by fragment."""
        found = [self.partitions.fragment(parameter) for group in self.groups for parameter in group]
        states = FragmentStates(self.stepped, self.partitions, [each for each in found if each is not None])
        return FragmentedOptimizer(
            self.stepped, states, [[self._key(parameter) for parameter in group] for group in self.groups]
        )

    def take_over(self, states: Mapping[torch.Tensor, Mapping[str, Any]]) -> None:
        """What the cell put into the optimizer, such as moments that it loaded, is the fragments' from now on."""
        for parameter, state in states.items():
            self.stepped.state.pop(parameter, None)
            fragment = self.partitions.fragment(parameter)
            if fragment is not None:
                own = self.optimizer().state[fragment.weight]
                for name, value in state.items():
                    is_whole = isinstance(value, torch.Tensor) and value.dim() and value.shape == parameter.shape
                    own[name] = fragment.cut(value).float() if is_whole else value

    def copies(
        self, parameters: Sequence[torch.Tensor], group: int
    ) -> list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]:
        """Weights and states of fragments in a group, copied: (weight, its copy, copies of its state)."""
        if not parameters:
            return []
        states, kept = self.optimizer().state, []
        for parameter in parameters:
            fragment = self.partitions.fragment(parameter)
            if fragment is not None and fragment.group == group:
                state = states[fragment.weight].items()
                copied = {
                    name: value.clone() for name, value in state if isinstance(value, torch.Tensor) and value.dim()
                }
                kept.append((fragment.weight, fragment.weight.clone(), copied))
        return kept

    @torch.no_grad()
    def put_back(self, kept: Sequence[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]) -> None:
        """Undo an update of what ``copies`` gave; moments that were made by it become zero."""
        states = self.optimizer().state if kept else {}
        for weight, before, state in kept:
            weight.copy_(before)
            for name, value in states[weight].items():
                if isinstance(value, torch.Tensor) and value.dim():
                    value.copy_(state[name]) if name in state else value.zero_()

    def rank_state(self, scaler: LossScaler | None) -> RankState:
        """As ``Checkpointable.rank_state``."""
        buffers = {
            name: Target(tensor, Place.whole(tensor.shape)) for name, tensor in persistent_buffers(self.module).items()
        }
        return RankState(
            slots=list(self._slots()),
            buffers=buffers,
            saves_buffers=self.here.dp == 0,
            optimizer=self.optimizer(),  # type: ignore[arg-type]
            scaler=scaler,
            tied=self.originals.tied,
        )

    def _slots(self) -> Iterator[Slot]:
        for name, parameter in self.module.named_parameters():
            own = self.originals.name(name)
            shape = self.originals.shapes[own]
            whole = Target(parameter.detach(), Place.whole(shape))
            fragment = self.partitions.fragment(parameter)
            if fragment is None and id(parameter) not in self._nothing:  # the optimizer does not update it
                rows = len(parameter) if parameter.dim() else 1
                mine = self.originals.order[own] % self.mesh.dp == self.here.dp
                yield Slot(own, whole, (), parameter, rows, mine)
                continue
            runs = ((0, 0),) if fragment is None else ((fragment.first, fragment.numel),)
            key = self._key(parameter)
            yield Slot(own, Target(key, Place(tuple(shape), None, runs)), (whole,), key, len(key), bool(len(key)))
