"""What a rank holds of a training's state, in terms of the user's own model: names, whole shapes, and which elements.

Nothing here depends on how a training is spread: a strategy gives its ``RankState``, a checkpoint writes it, and
another strategy's ``RankState`` says which elements to read back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from workbench.engine.base.generators import ModuleGenerator
from workbench.engine.base.names import users_name
from workbench.engine.base.tensor import local_part

Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Which elements of a whole tensor of shape ``shape`` a rank holds.

    ``runs``: (first, length) along ``dim``, in the order in which the rank has them; ``dim`` None: along the flattened
    tensor, and the rank's part is flat.
    """

    shape: tuple[int, ...]
    dim: int | None
    runs: Runs

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Place:
        """All of it, in one piece."""
        return cls(tuple(shape), 0, ((0, shape[0]),)) if len(shape) else cls((), None, ((0, 1),))

    @property
    def is_whole(self) -> bool:
        """Whether the place covers everything."""
        size = math.prod(self.shape) if self.dim is None else self.shape[self.dim]
        return self.runs == ((0, size),)

    @property
    def numel(self) -> int:
        """How many elements."""
        return math.prod(self.part_shape)

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of the rank's part."""
        along = sum(length for _, length in self.runs)
        if self.dim is None:
            return (along,) if self.shape or along != 1 else ()
        return (*self.shape[: self.dim], along, *self.shape[self.dim + 1 :])

    def slice_of(self, first: int, length: int) -> Place:
        """The elements ``first`` to ``first + length`` of the rank's part, flattened."""
        if self.dim is None:
            return Place(self.shape, None, part_of(self.runs, first, length))
        size, inner = self.shape[self.dim], math.prod(self.shape[self.dim + 1 :])
        own = inner * sum(each for _, each in self.runs)
        if not own or not length:
            return Place(self.shape, None, ((0, 0),))
        outer = range(first // own, -(-(first + length) // own))
        runs = [((row * size + begin) * inner, each * inner) for row in outer for begin, each in self.runs]
        return Place(self.shape, None, part_of(runs, first - outer.start * own, length))

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """The rank's part of the whole tensor."""
        if self.is_whole:
            return whole.reshape(-1) if self.dim is None and self.shape else whole
        source, dim = (whole.reshape(-1), 0) if self.dim is None else (whole, self.dim)
        return torch.cat([source.narrow(dim, first, length) for first, length in self.runs], dim)

    def put(self, part: torch.Tensor, whole: torch.Tensor) -> None:
        """Write the rank's part into the whole tensor."""
        target, dim = (whole.view(-1), 0) if self.dim is None else (whole, self.dim)
        part = part.reshape(-1) if self.dim is None else part
        start = 0
        for first, length in self.runs:
            target.narrow(dim, first, length).copy_(part.narrow(dim, start, length))
            start += length


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of this rank and its place; ``tensor`` is a view of exactly the elements that count (no padding)."""

    tensor: torch.Tensor
    place: Place


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter of the user's model as this rank has it.

    ``saved`` is what the optimizer updates (fp32 master weights where there are some); ``copies`` follow it (the
    weights that the forward pass uses). ``key`` finds the parameter's state in ``optimizer.state``, whose tensors are
    shaped like ``key``; ``real`` of its leading elements along dim 0 count. ``mine``: this rank is the one that saves.
    """

    name: str
    saved: Target
    copies: tuple[Target, ...]
    key: torch.Tensor
    real: int
    mine: bool

    def part(self, like_key: torch.Tensor) -> torch.Tensor:
        """This rank's elements that count of a tensor shaped like ``key``."""
        like_key = local_part(like_key)
        return like_key if not like_key.dim() or like_key.shape[0] == self.real else like_key[: self.real]


class LossScaler(Protocol):
    """What scales the loss in fp16, as ``torch.amp.GradScaler`` does."""

    def state_dict(self) -> dict[str, Any]:
        """Its state as plain numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo ``state_dict``."""


@dataclass(kw_only=True)
class RankState:
    """Everything of a training's state on this rank, but random generators of the process and the data's position.

    ``buffers``: persistent buffers of the model by name; ``saves_buffers``: this rank is the one that saves them.
    ``generators``: random generators that the framework keeps inside modules. ``scaler``: None without a loss scale.
    ``tied``: further names of tied parameters -> the name of their slot, on any rank. ``own``: what each rank keeps by
    itself, such as what its gradients left over: tensors that are restored in place under the same plan only.
    ``apart``: given a parameter or buffer, what this rank itself holds in its place; None where replicas hold the same.
    """

    slots: list[Slot]
    buffers: dict[str, Target] = field(default_factory=dict)
    saves_buffers: bool = False
    optimizer: torch.optim.Optimizer
    generators: Mapping[str, ModuleGenerator] = field(default_factory=dict)
    scaler: LossScaler | None = None
    tied: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, torch.Tensor] = field(default_factory=dict)
    apart: Callable[[torch.Tensor], torch.Tensor] | None = None

    def scaler_state(self) -> dict[str, Any]:
        """Plain numbers of the loss scaler; empty without one."""
        return {} if self.scaler is None else dict(self.scaler.state_dict())

    def set_scaler_state(self, state: Mapping[str, Any]) -> None:
        """Undo ``scaler_state``."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(dict(state))


class Originals:
    """Names (the user's own, whatever wraps a module) and shapes of a model before a plan touches it. A tied tensor has
    one name, its first."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._names: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names[name] = first.setdefault(id(parameter), users_name(name))
            self.shapes[self._names[name]] = tuple(parameter.shape)
        self.order = {name: turn for turn, name in enumerate(dict.fromkeys(first.values()))}
        self.buffers = persistent_buffers(model)
        users = {users_name(name): own for name, own in self._names.items()}
        #: further names of tied tensors -> the one name
        self.tied = {alias: name for alias, name in users.items() if alias != name}

    def name(self, name: str) -> str:
        """The one name of a tensor."""
        return self._names.get(name, users_name(name))


def persistent_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that belong to the model's state, by qualified name."""
    found = {}
    for module_name, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[users_name(f"{module_name}.{name}".lstrip("."))] = buffer
    return found


def whole_buffers(model: torch.nn.Module) -> dict[str, Target]:
    """``persistent_buffers``, of which this rank has all elements."""
    return {name: Target(tensor, Place.whole(tensor.shape)) for name, tensor in persistent_buffers(model).items()}


def place_of(parameter: torch.Tensor, shape: Sequence[int], tp: int) -> Place:
    """Which elements of a whole parameter of ``shape`` the (tensor-parallel) rank ``tp`` holds in ``parameter``.

    A fused layer (GPT-2's query, key and value in one matrix) is cut by a function of its own: what that does to the
    numbers of the elements is its place.
    """
    shape = tuple(shape)
    dims = [dim for dim, (own, all_) in enumerate(zip(parameter.shape, shape, strict=True)) if own != all_]
    if not dims:
        return Place.whole(shape)
    (dim,) = dims
    shard = getattr(parameter, "shard_fn", None)
    if shard is None:
        own = parameter.shape[dim]
        return Place(shape, dim, ((tp * own, max(0, min(own, shape[dim] - tp * own))),))
    cut = shard(torch.arange(shape[dim]).reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape))
    along = cut.movedim(dim, 0).reshape(cut.shape[dim], -1)[:, 0].tolist()
    return Place(shape, dim, runs_of(along))


def part_of(runs: Sequence[tuple[int, int]], first: int, length: int) -> Runs:
    """The elements ``first`` to ``first + length`` of those that ``runs`` name."""
    found, start = [], 0
    for begin, size in runs:
        low, high = max(first, start), min(first + length, start + size)
        if low < high:
            found.append((begin + low - start, high - low))
        start += size
    return tuple(found) or ((0, 0),)


def runs_of(numbers: Sequence[int]) -> Runs:
    """``[0, 1, 2, 8, 9]`` -> ``((0, 3), (8, 2))``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return tuple((first, length) for first, length in runs)
