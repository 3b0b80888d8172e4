"""The user's parameters as parts of Megatron's weights, while these are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from workbench.engine.frameworks.megatron.models import Family, Part, Split, part_of
from workbench.engine.state.layout import Place, Target

_EMBEDDING, _OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"


def has_tied(model: torch.nn.Module) -> bool:
    """Whether the output layer of a model has the weights of its embedding."""
    return len(list(model.parameters())) < len(list(model.named_parameters(remove_duplicate=False)))


class SharedWeights:
    """Each parameter of ``model``, the user's, is made the part of one of Megatron's that it stands for: same object,
    same elements in the same order, in another shape. So the user's optimizer updates Megatron's weights, with a state
    and by a name of each of the user's. ``close`` makes them tensors of their own again.

    ``has_copies``: Megatron's weights are of half precision, and the user's parameters the fp32 ones that are updated
    and then copied into them (``publish``)."""

    def __init__(self, family: Family, model: Any, theirs: torch.nn.Module, split: Split, *, has_copies: bool) -> None:
        self.has_copies = has_copies
        self.is_cut = split.tp > 1
        #: parameters that an earlier stage has too
        self.foreign: list[torch.nn.Parameter] = []
        self._missing: list[torch.nn.Parameter] = []
        named = dict(theirs.named_parameters())
        self._model = model
        self._places: dict[str, Place] = {}
        self._parts: dict[int, tuple[Part, torch.nn.Parameter]] = {}
        self._of: dict[int, Place] = {}
        is_tied = has_tied(model)
        trained: set[str] = set()
        for name, parameter in model.named_parameters():
            part = part_of(family, model.config, name)
            assert part is not None  # the checks refuse others
            own = split.own_name(part.name, model.config.num_hidden_layers)
            if own not in named and split.is_last and own == _EMBEDDING and _OUTPUT in named and is_tied:
                own = _OUTPUT
                self.foreign.append(parameter)
            if own not in named:
                self._missing.append(parameter)
                continue
            part = replace(part, name=own)
            self._places[name] = self._of[id(parameter)] = split.place(part.cut, parameter.shape)
            self._parts[id(parameter)] = (part, named[part.name])
            trained.update({part.name} if parameter.requires_grad else ())
        for name, weight in named.items():
            weight.requires_grad_(name in trained)
            weight.detach().zero_()  # whatever is in rows of padding is multiplied with

    def share(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the values of the user's parameters, rank 0's, and make them parts; those of other stages are taken out
        of the user's model and optimizer. Megatron's weights are where they stay. Collective."""
        for parameter in self._model.parameters():
            whole = parameter.detach().contiguous()
            dist.broadcast(whole, 0)
            if id(parameter) not in self._of:
                continue
            target, place = self._target(parameter), self._of[id(parameter)]
            own = place.of(whole).contiguous().view(target.shape)
            target.copy_(own)
            _make_state(optimizer, parameter, place.of, target.shape)
            parameter.data = own if self.has_copies else target
            parameter.tensor_model_parallel = not place.is_whole  # type: ignore[attr-defined]
        for parameter in self.foreign:
            parameter.shared = True  # type: ignore[attr-defined]
        self._leave_out(optimizer)

    def _leave_out(self, optimizer: torch.optim.Optimizer) -> None:
        missing = {id(parameter) for parameter in self._missing}
        for module in self._model.modules() if missing else ():
            for name, parameter in list(module._parameters.items()):
                if id(parameter) in missing:
                    module._parameters[name] = None
        for group in optimizer.param_groups:
            group["params"] = [each for each in group["params"] if id(each) not in missing]
        for parameter in self._missing:
            optimizer.state.pop(parameter, None)

    def publish(self) -> None:
        """Let Megatron compute with the values that the user's parameters have now."""
        if self.has_copies:
            for parameter in self._model.parameters():
                self._target(parameter).copy_(parameter.detach())

    def _target(self, parameter: torch.Tensor) -> torch.Tensor:
        return self._view(parameter, self.whole(parameter).detach())

    def _view(self, parameter: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        """The elements that count: Megatron pads the rows of a vocabulary."""
        found, place = self._parts[id(parameter)][0].view(of), self._of[id(parameter)]
        return found[: place.part_shape[0]] if found.dim() == len(place.shape) else found

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        """The gradient of a parameter of the user's in Megatron's buffer, a view in the parameter's present shape."""
        return self._view(parameter, self.whole(parameter).main_grad)  # type: ignore[attr-defined]

    def whole(self, parameter: torch.Tensor) -> torch.nn.Parameter:
        """The weight of Megatron's that a parameter of the user's is part of."""
        return self._parts[id(parameter)][1]

    def place(self, parameter: torch.Tensor) -> Place:
        """Where the elements of a parameter are in the user's."""
        return self._of[id(parameter)]

    def copies(self) -> dict[str, tuple[Target, ...]]:
        """Name -> what follows the parameter's values."""
        if not self.has_copies:
            return dict.fromkeys(self._places, ())
        named = self._model.named_parameters()
        return {name: (Target(self._target(each), self._places[name]),) for name, each in named}

    @property
    def places(self) -> Mapping[str, Place]:
        """Where the elements of each parameter are in the user's, by name."""
        return self._places

    def close(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo ``share``. Of a weight that ranks share each keeps its part."""
        for parameter in self._model.parameters():
            shape = self._of[id(parameter)].part_shape
            _make_state(optimizer, parameter, torch.clone, shape)
            parameter.grad = None
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format).view(shape)
            del parameter.tensor_model_parallel  # type: ignore[attr-defined]
        for parameter in self.foreign:
            del parameter.shared  # type: ignore[attr-defined]


def _make_state(
    optimizer: Any, parameter: torch.Tensor, part_of: Callable[[torch.Tensor], torch.Tensor], shape: Sequence[int]
) -> None:
    """Give what the optimizer keeps in the parameter's shape the one that this is about to have."""
    state = optimizer.state.get(parameter, {})
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.dim() and value.shape == parameter.shape:
            state[name] = part_of(value).reshape(shape)
