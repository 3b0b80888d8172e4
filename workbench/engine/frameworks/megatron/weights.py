"""The user's parameters as parts of Megatron's weights, while these are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from workbench.engine.frameworks.megatron.models import Family, Part, part_of
from workbench.engine.state.layout import Place, Target


class SharedWeights:
    """Each parameter of ``model``, the user's, is made the part of one of Megatron's that it stands for: same object,
    same elements in the same order, in another shape. So the user's optimizer updates Megatron's weights, with a state
    and by a name of each of the user's. ``close`` makes them tensors of their own again.

    ``has_copies``: Megatron's weights are of half precision, and the user's parameters the fp32 ones that are updated
    and then copied into them (``publish``)."""

    def __init__(self, family: Family, model: Any, theirs: torch.nn.Module, *, has_copies: bool) -> None:
        self.has_copies = has_copies
        named = dict(theirs.named_parameters())
        self._model = model
        self._shapes: dict[str, torch.Size] = {}
        self._parts: dict[int, tuple[Part, torch.nn.Parameter]] = {}
        trained: set[str] = set()
        for name, parameter in model.named_parameters():
            part = part_of(family, model.config, name)
            assert part is not None  # the checks refuse others
            self._shapes[name] = parameter.shape
            self._parts[id(parameter)] = (part, named[part.name])
            trained.update({part.name} if parameter.requires_grad else ())
        for name, weight in named.items():
            weight.requires_grad_(name in trained)

    def share(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the values of the user's parameters, rank 0's, and make them parts. Megatron's weights are where they
        stay. Collective."""
        for parameter in self._model.parameters():
            whole = parameter.detach().contiguous()
            dist.broadcast(whole, 0)
            place = self._place(parameter)
            place.copy_(whole.view(place.shape))
            _reshape_state(optimizer, parameter, place.shape)
            parameter.data = whole.view(place.shape) if self.has_copies else place

    def publish(self) -> None:
        """Let Megatron compute with the values that the user's parameters have now."""
        if self.has_copies:
            for parameter in self._model.parameters():
                self._place(parameter).copy_(parameter.detach())

    def _place(self, parameter: torch.Tensor) -> torch.Tensor:
        part, weight = self._parts[id(parameter)]
        return part.view(weight.detach())

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """The gradient of a parameter of the user's in Megatron's buffer, a view in the parameter's present shape."""
        part, weight = self._parts[id(parameter)]
        return part.view(weight.main_grad)  # type: ignore[attr-defined]

    def whole(self, parameter: torch.Tensor) -> torch.nn.Parameter:
        """The weight of Megatron's that a parameter of the user's is part of."""
        return self._parts[id(parameter)][1]

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Name -> shape of the user's parameters."""
        return self._shapes

    def copies(self) -> dict[str, tuple[Target, ...]]:
        """Name -> what follows the parameter's values."""
        if not self.has_copies:
            return dict.fromkeys(self._shapes, ())
        named = self._model.named_parameters()
        return {name: (Target(self._place(each), Place.whole(self._shapes[name])),) for name, each in named}

    def places(self) -> dict[str, Place]:
        """Where the elements of each parameter are in the user's: all of them, in order."""
        return {name: Place.whole(shape) for name, shape in self._shapes.items()}

    def close(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo ``share``."""
        for name, parameter in self._model.named_parameters():
            shape = self._shapes[name]
            _reshape_state(optimizer, parameter, shape)
            parameter.grad = None
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format).view(shape)


def _reshape_state(optimizer: Any, parameter: torch.Tensor, shape: torch.Size) -> None:
    state = optimizer.state.get(parameter, {})
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.dim() and value.shape == parameter.shape:
            state[name] = value.reshape(shape)
