"""Hooks on the modules of a model, which show what each puts out in the forward pass and the gradient of that.

Hooks are there only while a ``Taps`` is entered: a step that is not watched costs nothing. What is computed again in
the backward pass (gradient checkpointing) is not shown a second time, and neither is what a module computes in
evaluation mode without gradients.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from workbench.engine.base.names import TRAINED, users_name

#: told of a module's output, or of the gradient of one: layer, "output" or "gradient", micro-batch, sharded, tensor
Shown = Callable[[str, str, int, str, torch.Tensor], None]
#: whether a module's output is split: see ``capabilities.Inspectable.output_sharding``
Sharding = Callable[[torch.nn.Module], "str | None"]


@dataclass(slots=True)
class Call:
    """A call of a module that has not returned. ``last``: how the output of the last layer of the plan is split that it
    has called (None: it has called none). ``split``: the split outputs of the modules that it has called, by the
    address of their storage, kept so that no other tensor gets the address meanwhile."""

    name: str
    module: torch.nn.Module
    last: str | None = None
    split: dict[int, torch.Tensor] = field(default_factory=dict)


class Taps:
    """While entered, shows outputs and gradients of the modules ``names`` of ``model``.

    ``sharding``: of the plan's layers; None where no output is split. ``micro_batch``: set it to the number of the one
    that is being computed. ``calls``: the calls under way, outermost first. A module that hands on the very tensor
    that one of ``names`` gave is not shown again.
    """

    def __init__(self, model: torch.nn.Module, names: Collection[str], shown: Shown, sharding: Sharding | None) -> None:
        self._model = model
        self._names = names
        self._shown = shown
        self._sharding = sharding
        self._hooks = ExitStack()
        self._last: weakref.ref[torch.Tensor] | None = None
        self.calls: list[Call] = []
        self.micro_batch = -1

    def __enter__(self) -> Taps:
        with ExitStack() as hooks:  # if a hook cannot be registered, those before it are removed again
            for name, module in self._model.named_modules():
                if module is self._model and hasattr(module, TRAINED):
                    continue  # what it returns is the loss, not an output of the user's model
                hooks.callback(module.register_forward_pre_hook(partial(self._enters, users_name(name))).remove)
                leaves = module.register_forward_hook(self._leaves, with_kwargs=True, always_call=True)
                hooks.callback(leaves.remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._hooks.close()
        self.calls.clear()
        self._last = None

    @property
    def is_counted(self) -> bool:
        """Whether what is computed now belongs to the step's forward pass."""
        if torch._C._current_graph_task_id() != -1:
            return False  # computed again, within the backward pass
        return torch.is_grad_enabled() or not self.calls or self.calls[-1].module.training

    def _enters(self, name: str, module: torch.nn.Module, args: Any) -> None:
        self.calls.append(Call(name, module))

    def _leaves(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        while self.calls and self.calls[-1].module is not module:
            self.calls.pop()  # left by an exception that somebody caught
        if not self.calls:
            return
        counted, call = self.is_counted, self.calls.pop()
        found = main_output(output)
        if found is None:
            return
        sharded = self._sharded(call, (args, kwargs), found) if self._sharding is not None else ""
        if call.name not in self._names or (self._last is not None and self._last() is found):
            return
        if torch.is_grad_enabled() and not found.requires_grad and next(module.parameters(), None) is None:
            return  # a constant, such as the angles of rotary embeddings, which no sample has a part in
        self._last = weakref.ref(found)
        if counted:
            self._shown(call.name, "output", self.micro_batch, sharded, found.detach())
        if found.requires_grad:
            found.register_hook(partial(self._gradient, call.name, self.micro_batch, sharded))

    def _gradient(self, layer: str, micro_batch: int, sharded: str, gradient: torch.Tensor) -> None:
        self._shown(layer, "gradient", micro_batch, sharded, gradient.detach())

    def _sharded(self, call: Call, given: Any, output: torch.Tensor) -> str:
        assert self._sharding is not None
        declared = self._sharding(call.module)
        if declared is None:
            declared = call.last  # attention is split when its last layer is; a layer split by rows makes it whole
        if declared is not None and self.calls:
            self.calls[-1].last = declared
        if declared is None:
            split = self.split
            sharded = "tp" if any(_address(tensor) in split for tensor in _tensors(given)) else ""
        else:
            sharded = declared
        if sharded and self.calls:
            self.calls[-1].split[_address(output)] = output.detach()
        return sharded

    @property
    def split(self) -> Mapping[int, torch.Tensor]:
        """Split outputs that the calls under way have seen."""
        return {address: tensor for call in self.calls for address, tensor in call.split.items()}


def main_output(output: Any) -> torch.Tensor | None:
    """The first tensor of floating point numbers in what a module returned, one of several elements if there is one;
    None without any."""
    tensors = _tensors(output)
    return next((tensor for tensor in tensors if tensor.numel() > 1), next(iter(tensors), None))


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in _leaves(value) if leaf.is_floating_point() and leaf.layout == torch.strided]


def _leaves(value: Any) -> Iterator[torch.Tensor]:
    """Tensors in nested containers, in the mappings of transformers' outputs too."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    else:
        yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
