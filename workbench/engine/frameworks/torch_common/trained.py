"""Everything that an optimizer trains, as one module: the user's model, and what stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload

Result = TypeVar("Result")


class Trained(torch.nn.Module):
    """The user's model and ``beside`` (name -> module or parameter), such as a criterion with weights of its own.

    A framework wraps this module. Its forward pass is the whole computation of the loss, so ``loss_fn`` is given the
    user's own model, with all its methods, and every parameter is used inside the wrapped forward pass. Names of
    parameters are the user's (``users_name``): those of the model, and ``<name>.<parameter>`` beside it.
    """

    def __init__(self, model: torch.nn.Module, beside: Mapping[str, Any]) -> None:
        super().__init__()
        self._trained_model = model
        self._beside_model = torch.nn.Module()
        taken = {name.partition(".")[0] for name, _ in model.named_parameters()}
        for name, found in beside.items():
            unique = name
            while unique in taken or hasattr(self._beside_model, unique):
                unique += "_"
            setattr(self._beside_model, unique, found)

    def forward(self, compute: Callable[[], Result]) -> Result:
        """Return ``compute()``."""
        return compute()


def trained(workload: Workload) -> torch.nn.Module:
    """What a framework is to wrap for a model that is whole on every rank."""
    return Trained(workload.model, workload.beside)


def users_model(module: torch.nn.Module) -> torch.nn.Module:
    """The user's model in a module that ``trained`` made; any other module is the user's model itself."""
    return module._trained_model if isinstance(module, Trained) else module


def convert_inputs(module: torch.nn.Module, convert: Callable[[Any], Any]) -> RemovableHandle:
    """Let ``convert`` act on every input of the user's model in ``module``, before hooks of its own. It must not hold
    what trains the model, which the model outlives."""
    return users_model(module).register_forward_pre_hook(
        lambda called, args, kwargs: tree_map(convert, (args, kwargs)), with_kwargs=True, prepend=True
    )


def modes_of(model: torch.nn.Module) -> dict[str, bool]:
    """Whether each module is in training mode, by the user's name of the module."""
    return {users_name(name): module.training for name, module in model.named_modules()}


def set_modes(model: torch.nn.Module, modes: Mapping[str, bool]) -> None:
    """Put the modules of ``model``, some of which a framework may have replaced, into the modes of ``modes_of``.

    A module that the framework added has the mode of the module that contains it.
    """
    for name, module in model.named_modules():
        known = users_name(name)
        while known and known not in modes:
            known = known.rpartition(".")[0]
        module.training = modes.get(known, True)
