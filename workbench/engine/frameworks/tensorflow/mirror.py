"""A Keras model as a module of torch: the engine's names, norms, figures and checkpoints are of torch's tensors.

Each layer is a module of its name, each weight a parameter and each other variable a buffer: copies, which follow the
variables (``pull``), and which these follow where something else changed them (``push``), such as a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch
from torch.utils._pytree import tree_leaves, tree_map

from workbench.engine.frameworks.tensorflow.arrays import to_numpy, to_torch


@dataclass(slots=True)
class Mirror:
    """``tensor``: the copy of ``variable``, as it was when it had its ``version``."""

    tensor: torch.Tensor
    variable: Any
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.version = self.tensor._version

    def push(self) -> None:
        """Give the variable what was written to the copy since."""
        if self.tensor._version != self.version:
            self.variable.assign(np.array(to_numpy(self.tensor)))
            self.version = self.tensor._version

    def pull(self) -> None:
        """Give the copy what the variable has."""
        with torch.no_grad():
            self.tensor.copy_(to_torch(self.variable.value))
        self.version = self.tensor._version


@dataclass(frozen=True, slots=True)
class Passed:
    """A tensor of TensorFlow that went into a layer or came out of it, and the copy that hooks of torch saw."""

    tensor: Any
    copy: torch.Tensor

    def show(self, gradient: torch.Tensor) -> None:
        """Call the hooks that wait for the gradient of the copy."""
        for hook in list((self.copy._backward_hooks or {}).values()):
            hook(gradient)


class MirroredLayer(torch.nn.Module):
    """A layer of Keras. Inside ``MirroredModel.calling`` it is called with copies of what the layer is called with, so
    that hooks of torch see these. ``passed``: takes what goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self._call: Callable[[], Any] = lambda: None
        self._given: list[Any] = []
        self.passed: list[Passed] = []

    def called(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What ``call`` returns for these arguments."""
        found: list[Any] = []

        def compute() -> Any:
            found.append(call(*args, **kwargs))
            return found[0]

        self._call = compute
        self._given = tree_leaves((args, kwargs))
        self(*_copies(args), **_copies(kwargs))
        return found[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's outputs, as copies."""
        passed = self.passed
        passed += _pairs(self._given, tree_leaves((args, kwargs)))
        outputs = self._call()
        copies = _copies(outputs)
        passed += _pairs(tree_leaves(outputs), tree_leaves(copies))
        return copies


class MirroredModel(MirroredLayer):
    """``model``: a Keras model that is built. ``weights`` are its parameters in their order, ``others`` its buffers."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.model = model
        self.weights: list[Mirror] = []
        self.others: list[Mirror] = []
        self._layers: list[tuple[keras.Layer, MirroredLayer]] = []
        self._add(model, self, {})

    def _add(self, layer: keras.Layer, module: MirroredLayer, known: dict[int, MirroredLayer]) -> None:
        known[id(layer)] = module
        self._layers.append((layer, module))
        children = [each for each in layers_in(layer) if not isinstance(each, keras.layers.InputLayer)]
        elsewhere = {id(variable) for child in children for variable in child.weights}
        fixed = {id(variable) for variable in layer._non_trainable_variables}
        for variable in layer.weights:
            if id(variable) not in elsewhere:
                self._add_variable(variable, module, is_weight=id(variable) not in fixed)
        for child in children:
            if id(child) in known:
                module.add_module(_free(module, child.name), known[id(child)])
                continue
            mirrored: MirroredLayer = type(type(child).__name__, (MirroredLayer,), {})()
            module.add_module(_free(module, child.name), mirrored)
            self._add(child, mirrored, known)

    def _add_variable(self, variable: Any, module: MirroredLayer, *, is_weight: bool) -> None:
        value, name = to_torch(variable.value), _free(module, variable.name)
        if is_weight:
            parameter = torch.nn.Parameter(value, requires_grad=variable.trainable and value.is_floating_point())
            module.register_parameter(name, parameter)
            self.weights.append(Mirror(parameter, variable))
        else:
            module.register_buffer(name, value)
            self.others.append(Mirror(value, variable))

    @property
    def trained(self) -> list[Mirror]:
        """The weights that have gradients."""
        return [each for each in self.weights if each.tensor.requires_grad]

    @property
    def is_hooked(self) -> bool:
        """Whether a module has hooks that are called with what it is given or returns."""
        return any(module._forward_hooks or module._forward_pre_hooks for _, module in self._layers)

    def push(self) -> None:
        """Give the model what was written to the copies."""
        for each in (*self.weights, *self.others):
            each.push()

    @contextmanager
    def calling(self) -> Iterator[list[Passed]]:
        """While entered, each call of a layer calls its module, whose hooks see what goes in and comes out; it gives a
        list of that."""
        before = [(layer, vars(layer).get("call")) for layer, _ in self._layers]
        passed: list[Passed] = []
        for layer, module in self._layers:
            module.passed = passed
            set_past_keras(layer, "call", _called(layer.call, module))
        try:
            yield passed
        finally:
            for layer, own in before:
                set_past_keras(layer, "call", own)


def layers_in(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that a layer holds itself, in their order."""
    return list(layer._flatten_layers(recursive=False, include_self=False))


def _called(call: Callable[..., Any], module: MirroredLayer) -> Callable[..., Any]:
    return lambda *args, **kwargs: module.called(call, args, kwargs)


def set_past_keras(layer: keras.Layer, name: str, value: Any) -> None:
    """Set an attribute past Keras, which looks for layers and variables in it; None: it has no such attribute."""
    if value is None:
        layer.__dict__.pop(name, None)
    else:
        layer.__dict__[name] = value


def _copies(value: Any) -> Any:
    return tree_map(lambda leaf: _copy(leaf) if isinstance(leaf, tf.Tensor) else leaf, value)


def _copy(tensor: tf.Tensor) -> torch.Tensor:
    copy = to_torch(tensor)
    return copy.requires_grad_(copy.is_floating_point())


def _pairs(tensors: list[Any], copies: list[Any]) -> list[Passed]:
    both = zip(tensors, copies, strict=True)
    return [Passed(tensor, copy) for tensor, copy in both if isinstance(copy, torch.Tensor) and copy.requires_grad]


def _free(module: torch.nn.Module, name: str) -> str:
    """``name`` as one that a module may have."""
    name = name.replace(".", "_")
    while not name or hasattr(module, name):
        name += "_"
    return name
