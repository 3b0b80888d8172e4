"""Finds the module that produced the first non-finite value, with hooks on a repeated forward and backward pass.

Forward pass: inner modules finish before the modules that contain them, so the first module with a non-finite output
produced it, or code in that module's own ``forward`` did. Backward pass: each module gets a view of its input, so the
gradient of that view comes from this module alone; the first non-finite one names the module. If the gradient of a
module's *output* is non-finite first, code between modules produced it: that of the enclosing module, or the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from workbench.engine.base.tensor import local_part
from workbench.engine.frameworks.torch_common.trained import users_model

#: name of the origin when it lies outside the model
LOSS = "(loss)"
#: largest number of input or output tensors of a module that a finding describes
MAX_TENSORS = 8


@dataclass(slots=True)
class _Call:
    """One call of a module during the search; ``order`` numbers the calls."""

    order: int
    name: str
    kind: str
    micro_batch: int
    parent: _Call | None
    inputs: Any = None
    outputs: Any = None


@dataclass(slots=True)
class Finding:
    """The origin as one rank sees it.

    ``where``: "forward" or "backward". ``layer``: qualified name of the module in the user's model, ``module`` its
    class. ``order``: number of the module's call in the forward pass, the same on all tensor-parallel ranks. ``inputs``
    and ``output`` describe tensors (``describe_tensor``); ``weights_nonfinite`` counts the module's non-finite weights.
    """

    where: str
    layer: str
    module: str
    order: int
    micro_batch: int
    inputs: list[dict[str, Any]] = field(default_factory=list)
    output: list[dict[str, Any]] = field(default_factory=list)
    weights_nonfinite: int = 0


class NonfiniteSearch(AbstractContextManager["NonfiniteSearch"]):
    """Context manager around one forward and backward pass of ``module``; afterwards ``found`` is the origin, or None.

    Gradients of parameters are checked by hooks as well, so both ``torch.autograd.grad`` and ``backward`` are covered.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = users_model(module)
        self._hooks = ExitStack()
        self._stack: list[_Call] = []
        self._last_call: dict[str, _Call] = {}
        self._call_count = 0
        self._forward_count = 0
        self.forward: Finding | None = None
        self.backward: Finding | None = None

    @property
    def found(self) -> Finding | None:
        """The first finding, that of the forward pass if there is one; None without a finding."""
        return self.forward or self.backward

    def __enter__(self) -> NonfiniteSearch:
        with ExitStack() as hooks:  # if a hook cannot be registered, those before it are removed again
            for name, module in self._module.named_modules():
                before = partial(self._on_module_entry, name)
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(self._on_module_exit, with_kwargs=True).remove)
            for name, parameter in self._module.named_parameters():
                if parameter.requires_grad:
                    owner = name.rpartition(".")[0]
                    hooks.callback(parameter.register_hook(partial(self._on_parameter_gradient, owner)).remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._hooks.close()
        self._stack.clear()
        self._last_call.clear()

    def loss(self, loss: torch.Tensor) -> None:
        """Check the loss of the pass. If it is the first non-finite value, the loss function produced it."""
        root = self._last_call.get("")
        if self.forward is None and root is not None and not _is_finite(loss):
            call = _Call(root.order + 1, LOSS, "loss function", root.micro_batch, None, inputs=root.outputs)
            self.forward = self._make_finding("forward", call, loss)

    def _on_module_entry(self, name: str, module: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if not name and not self._stack:
            self._forward_count += 1
        self._call_count += 1
        parent = self._stack[-1] if self._stack else None
        call = _Call(self._call_count, name, type(module).__name__, self._forward_count - 1, parent)
        own: dict[int, Any] = {}  # a tensor passed twice gets one view, as modules may compare arguments by identity

        def view(leaf: Any) -> Any:
            if not (isinstance(leaf, torch.Tensor) and leaf.requires_grad and torch.is_grad_enabled()):
                return leaf
            if id(leaf) not in own:
                own[id(leaf)] = leaf.view_as(leaf)
                own[id(leaf)].register_hook(partial(self._on_input_gradient, call))
            return own[id(leaf)]

        call.inputs = args, kwargs = tree_map(view, (args, kwargs))
        self._stack.append(call)
        self._last_call[name] = call
        return args, kwargs

    def _on_module_exit(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self._stack.pop()
        call.outputs = output
        tensors = list(_floating_tensors(output))
        if self.forward is None and not all(map(_is_finite, tensors)):
            self.forward = self._make_finding("forward", call, output)
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._on_output_gradient, call))

    def _on_input_gradient(self, call: _Call, gradient: torch.Tensor) -> None:
        if self._is_first_nonfinite(gradient):
            self.backward = self._make_finding("backward", call, gradient)

    def _on_output_gradient(self, call: _Call, gradient: torch.Tensor) -> None:
        if self._is_first_nonfinite(gradient):
            made_by = call.parent or _Call(call.order + 1, LOSS, "loss function", call.micro_batch, None, call.outputs)
            self.backward = self._make_finding("backward", made_by, gradient)
            # of two calls within one parent, the backward pass reaches the later one first
            self.backward.order = call.order

    def _on_parameter_gradient(self, owner: str, gradient: torch.Tensor) -> None:
        if self._is_first_nonfinite(gradient):
            call = self._last_call.get(owner) or _Call(0, owner, "", max(0, self._forward_count - 1), None)
            self.backward = self._make_finding("backward", call, gradient)

    def _is_first_nonfinite(self, gradient: torch.Tensor) -> bool:
        return self.forward is None and self.backward is None and not _is_finite(gradient)

    def _make_finding(self, where: str, call: _Call, output: Any) -> Finding:
        weights = self._module.get_submodule(call.name) if call.name not in (LOSS, "") else None
        bad = sum(_count_nonfinite(p) for p in weights.parameters()) if weights is not None else 0
        inputs = [describe_tensor(tensor) for tensor in _floating_tensors(call.inputs)][:MAX_TENSORS]
        made = [describe_tensor(tensor) for tensor in _floating_tensors(output)][:MAX_TENSORS]
        return Finding(where, call.name, call.kind, call.order, call.micro_batch, inputs, made, bad)


def find_origin(found: Sequence[tuple[int, int, Finding]]) -> int:
    """Index of the finding that may have caused all others.

    ``found``: (pipeline stage, the rank's number among those of the stage, finding) for the ranks of one replica.
    Findings of the forward pass precede those of the backward pass. Non-finite values travel to later stages in the
    forward pass and to earlier stages in the backward pass. Ranks of a stage make the same calls in the same order.
    """

    def sort_key(index: int) -> tuple[int, ...]:
        stage, peer, one = found[index]
        if one.where == "forward":
            return (0, stage, one.micro_batch, one.order, peer)
        return (1, -stage, one.micro_batch, -one.order, peer)

    return min(range(len(found)), key=sort_key)


@torch.no_grad()
def describe_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    """Shape, dtype, count of non-finite elements, and min, max and mean of the finite ones (None if there are none)."""
    values = local_part(tensor.detach())
    finite = values[torch.isfinite(values)].double()
    some = finite.numel() > 0
    return {
        "shape": list(values.shape),
        "dtype": str(values.dtype).removeprefix("torch."),
        "nonfinite_count": values.numel() - finite.numel(),
        "min": float(finite.min()) if some else None,
        "max": float(finite.max()) if some else None,
        "mean": float(finite.mean()) if some else None,
    }


def count_nonfinite_values(batch: Any) -> int:
    """Count the non-finite elements of a batch."""
    return sum(_count_nonfinite(tensor) for tensor in _floating_tensors(batch))


def to_json_number(number: float) -> float | str:
    """``number`` if it is finite, else its name ("nan", "inf"), as JSON has no such numbers."""
    return number if math.isfinite(number) else repr(float(number))


def _floating_tensors(value: Any) -> Iterator[torch.Tensor]:
    leaves = [part for item in value.values() for part in tree_leaves(item)] if isinstance(value, Mapping) else None
    for leaf in tree_leaves(value) if leaves is None else leaves:
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            yield leaf


@torch.no_grad()
def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(local_part(tensor.detach())).all())


@torch.no_grad()
def _count_nonfinite(tensor: torch.Tensor) -> int:
    values = local_part(tensor.detach())
    return int(values.numel() - torch.isfinite(values).sum())
