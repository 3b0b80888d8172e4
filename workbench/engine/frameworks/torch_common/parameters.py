"""Parameters by the user's own names, whatever a framework did to the modules that hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from workbench.core.mesh import Coordinates, Mesh
from workbench.engine.base.names import users_name
from workbench.engine.base.parts import WeightMatrix
from workbench.engine.base.tensor import local_part


class Updating(Protocol):
    """Has ``param_groups`` as torch's optimizers do."""

    param_groups: list[dict[str, Any]]


class ModelNames:
    """Names and shapes of a model's parameters before a framework touches it.

    ``layers`` are the qualified names of the modules that own parameters, in the model's order. A tied parameter
    belongs to the first module that has it. ``sizes``: layer -> how many trained elements it owns. Trained is what
    requires a gradient and is updated by ``optimizer``.
    """

    def __init__(self, model: torch.nn.Module, optimizer: Updating) -> None:
        updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._is_trained: dict[tuple[str, str], bool] = {}
        self._owner: dict[tuple[str, str], str] = {}
        self._shape: dict[tuple[str, str], torch.Size] = {}
        first: dict[int, str] = {}
        self.sizes: dict[str, int] = {}
        for module_name, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                is_new = id(parameter) not in first
                owner = first.setdefault(id(parameter), users_name(module_name))
                self._owner[module_name, name] = owner
                self._shape[module_name, name] = parameter.shape
                trained = self._is_trained[module_name, name] = parameter.requires_grad and id(parameter) in updated
                if is_new and trained:
                    self.sizes[owner] = self.sizes.get(owner, 0) + parameter.numel()
        self.layers = list(dict.fromkeys(first.values()))

    def owner(self, module_name: str, name: str) -> str:
        """Qualified name of the module that owns a parameter in the user's model."""
        return self._owner.get((module_name, name), users_name(module_name))

    def is_trained(self, module_name: str, name: str) -> bool:
        """Whether the optimizer updates a parameter; True where it is the framework's own."""
        return self._is_trained.get((module_name, name), True)

    def shape(self, module_name: str, name: str) -> torch.Size | None:
        """Shape of a parameter in the user's model; None where it is the framework's own."""
        return self._shape.get((module_name, name))


@dataclass(frozen=True, slots=True)
class RankParameter:
    """A trainable parameter, or the part of one, that this rank holds.

    ``rows`` of dimension 0 count; the others are padding of the vocabulary. ``sharded`` is "" or "tp". ``foreign``: an
    earlier pipeline stage holds the same (tied) parameter and counts it. ``name``: of the parameter in its module;
    ``split``: the dimension over which tensor-parallel ranks split it, None where they do not.
    """

    layer: str
    parameter: torch.nn.Parameter
    sharded: str
    rows: int
    foreign: bool
    name: str = "weight"
    split: int | None = None

    def matrix(self) -> WeightMatrix | None:
        """The parameter as a matrix; None where it has fewer than two dimensions, or it is not known how it is split.
        A dimension of padding is left out."""
        if self.sharded and self.split is None:
            return None
        return self.matrix_of(self.real(self.parameter.detach()), self.split)

    def matrix_of(self, weight: torch.Tensor, split: int | None) -> WeightMatrix | None:
        """What this rank has of the parameter, ``weight``, as a matrix; ``split``: the dimension over which ranks split
        it, None where they do not. None where it has fewer than two dimensions."""
        if weight.dim() < 2 or not weight.is_floating_point():
            return None
        layer = self.layer if self.name == "weight" else f"{self.layer}.{self.name}"
        return WeightMatrix(layer, weight.flatten(1), "" if split is None else "columns" if split else "rows")

    def reduced(self) -> torch.Tensor:
        """The reduced gradient where it is in ``.grad``; zeros where a hook of the cell has used it up."""
        gradient = self.parameter.grad
        return self.real(torch.zeros_like(self.parameter) if gradient is None else gradient)

    def real(self, gradient: torch.Tensor) -> torch.Tensor:
        """This rank's part of ``gradient`` (shaped like the parameter) that is no padding: dense, with real numbers."""
        gradient = local_part(gradient)
        if gradient.is_sparse:
            gradient = gradient.to_dense()
        if gradient.is_complex():
            gradient = torch.view_as_real(gradient)
        return gradient if not gradient.dim() or self.rows == gradient.shape[0] else gradient[: self.rows]


def rank_parameters(
    model: torch.nn.Module,
    names: ModelNames,
    *,
    tp: int = 0,
    is_sharded: Callable[[torch.Tensor], bool] = lambda parameter: False,
    foreign: Iterable[torch.Tensor] = (),
) -> list[RankParameter]:
    """Trained parameters of ``model`` (as the framework left it), each once, in the order of its modules.

    ``is_sharded``: whether tensor-parallel ranks hold different parts of a parameter; this rank is number ``tp`` of
    them. ``foreign``: parameters that another rank counts.
    """
    others = {id(parameter) for parameter in foreign}
    held: dict[int, RankParameter] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_trained = parameter.requires_grad and names.is_trained(module_name, name)
            if not is_trained or id(parameter) in held:
                continue
            sharded = "tp" if is_sharded(parameter) else ""
            original = names.shape(module_name, name)
            held[id(parameter)] = RankParameter(
                names.owner(module_name, name),
                parameter,
                sharded,
                _rows(parameter.shape, original, tp if sharded else 0),
                id(parameter) in others,
                name,
                _split(parameter.shape, original) if sharded else None,
            )
    return list(held.values())


def _rows(now: torch.Size, original: torch.Size | None, tp: int) -> int:
    if not now:
        return 1
    if original is None or now[0] == original[0]:
        return now[0]
    return max(0, min(now[0], original[0] - tp * now[0]))


def _split(now: torch.Size, original: torch.Size | None) -> int | None:
    """The first dimension in which a part differs from the whole."""
    if original is None or len(now) != len(original):
        return None
    return next((dim for dim, (part, whole) in enumerate(zip(now, original, strict=True)) if part != whole), None)


def share_of_replicas(
    held: Iterable[RankParameter], layers: Mapping[str, int], mesh: Mesh, here: Coordinates
) -> list[RankParameter]:
    """Those parameters whose reduced gradient this rank reports, so that of all replicas exactly one does.

    Layers go round the replicas: data-parallel ones, context-parallel ones, and tensor-parallel ones where a parameter
    is not split.
    """
    mine = []
    for item in held:
        turn = layers[item.layer]
        if item.foreign or turn % mesh.dp != here.dp:
            continue
        turn //= mesh.dp
        if turn % mesh.cp == here.cp if item.sharded else turn % mesh.peers == mesh.peer(here):
            mine.append(item)
    return mine
