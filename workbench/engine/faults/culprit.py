"""Which module made the first number that is not finite: hooks around one more forward and backward pass.

Forward: modules finish innermost first, so the first one whose output is not finite made it, or code in its own
``forward`` did. Backward: each module sees its input through a view of its own, so the gradient of that view is what
this module alone sent back; the first such gradient that is not finite names its module. When instead the gradient of
a module's *output* is bad first, code between modules made it: the enclosing module's, or the loss.
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

#: name of what lies outside the model
LOSS = "(loss)"
#: tensors of a module's input that are described
MOST_TENSORS = 8


@dataclass(slots=True)
class _Call:
    """One call of a module in the watched pass."""

    order: int
    name: str
    kind: str
    micro_batch: int
    parent: _Call | None
    inputs: Any = None
    outputs: Any = None


@dataclass(slots=True)
class Finding:
    """What one rank found. ``order`` is the number of the call: the same on all tensor-parallel ranks.

    ``layer``: qualified name of the module in the user's model, ``module`` its class. ``where``: "forward", "backward".
    """

    where: str
    layer: str
    module: str
    order: int
    micro_batch: int
    inputs: list[dict[str, Any]] = field(default_factory=list)
    output: list[dict[str, Any]] = field(default_factory=list)
    weights_nonfinite: int = 0


class FaultWatch(AbstractContextManager["FaultWatch"]):
    """While entered, watches ``module``; afterwards ``found`` is the first fault of the pass, or None.

    Gradients of parameters arrive by hooks too, so ``torch.autograd.grad`` and ``backward`` are both seen.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._hooks = ExitStack()
        self._stack: list[_Call] = []
        self._last: dict[str, _Call] = {}
        self._calls = 0
        self._roots = 0
        self.forward: Finding | None = None
        self.backward: Finding | None = None

    @property
    def found(self) -> Finding | None:
        """The first fault, a forward one before any backward one; None so far."""
        return self.forward or self.backward

    def __enter__(self) -> FaultWatch:
        with ExitStack() as hooks:  # a hook that cannot be set takes those before it away again
            for name, module in self._module.named_modules():
                before = partial(self._before, name)
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(self._after, with_kwargs=True).remove)
            for name, parameter in self._module.named_parameters():
                if parameter.requires_grad:
                    owner = name.rpartition(".")[0]
                    hooks.callback(parameter.register_hook(partial(self._of_parameter, owner)).remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._hooks.close()
        self._stack.clear()
        self._last.clear()

    def loss(self, loss: torch.Tensor) -> None:
        """The loss of the pass: when it is the first bad number, the loss function made it."""
        root = self._last.get("")
        if self.forward is None and root is not None and not _is_finite(loss):
            call = _Call(root.order + 1, LOSS, "loss function", root.micro_batch, None, inputs=root.outputs)
            self.forward = self._finding("forward", call, loss)

    def _before(self, name: str, module: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if not name and not self._stack:
            self._roots += 1
        self._calls += 1
        parent = self._stack[-1] if self._stack else None
        call = _Call(self._calls, name, type(module).__name__, self._roots - 1, parent)
        own: dict[int, Any] = {}  # one view for a tensor that is passed twice: modules compare by identity

        def view(leaf: Any) -> Any:
            if not (isinstance(leaf, torch.Tensor) and leaf.requires_grad and torch.is_grad_enabled()):
                return leaf
            if id(leaf) not in own:
                own[id(leaf)] = leaf.view_as(leaf)
                own[id(leaf)].register_hook(partial(self._sent_back, call))
            return own[id(leaf)]

        call.inputs = args, kwargs = tree_map(view, (args, kwargs))
        self._stack.append(call)
        self._last[name] = call
        return args, kwargs

    def _after(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self._stack.pop()
        call.outputs = output
        tensors = list(_floating(output))
        if self.forward is None and not all(map(_is_finite, tensors)):
            self.forward = self._finding("forward", call, output)
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._arrived, call))

    def _sent_back(self, call: _Call, gradient: torch.Tensor) -> None:
        if self._is_first(gradient):
            self.backward = self._finding("backward", call, gradient)

    def _arrived(self, call: _Call, gradient: torch.Tensor) -> None:
        if self._is_first(gradient):
            made_by = call.parent or _Call(call.order + 1, LOSS, "loss function", call.micro_batch, None, call.outputs)
            self.backward = self._finding("backward", made_by, gradient)
            # of two calls in one parent, the later one was reached first
            self.backward.order = call.order

    def _of_parameter(self, owner: str, gradient: torch.Tensor) -> None:
        if self._is_first(gradient):
            call = self._last.get(owner) or _Call(0, owner, "", max(0, self._roots - 1), None)
            self.backward = self._finding("backward", call, gradient)

    def _is_first(self, gradient: torch.Tensor) -> bool:
        return self.forward is None and self.backward is None and not _is_finite(gradient)

    def _finding(self, where: str, call: _Call, output: Any) -> Finding:
        weights = self._module.get_submodule(call.name) if call.name not in (LOSS, "") else None
        bad = sum(_count_nonfinite(p) for p in weights.parameters()) if weights is not None else 0
        inputs = [describe(tensor) for tensor in _floating(call.inputs)][:MOST_TENSORS]
        made = [describe(tensor) for tensor in _floating(output)][:MOST_TENSORS]
        return Finding(where, call.name, call.kind, call.order, call.micro_batch, inputs, made, bad)


def first_of(found: Sequence[tuple[int, int, Finding]]) -> int:
    """Index of the fault that the others may follow from, of (stage, tensor-parallel rank, finding) of one replica.

    A fault of the forward pass comes before all of the backward pass and travels to later stages, one of the backward
    pass to earlier ones. Tensor-parallel ranks make the same calls: the earlier call is the first in the forward pass.
    """

    def when(index: int) -> tuple[int, ...]:
        stage, tp, one = found[index]
        if one.where == "forward":
            return (0, stage, one.micro_batch, one.order, tp)
        return (1, -stage, one.micro_batch, -one.order, tp)

    return min(range(len(found)), key=when)


@torch.no_grad()
def describe(tensor: torch.Tensor) -> dict[str, Any]:
    """Shape, dtype, count of elements that are not finite, and min, max and mean of those that are (None: none is)."""
    values = tensor.detach()
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


def nonfinite_in(batch: Any) -> int:
    """Elements of a batch that are not finite."""
    return sum(_count_nonfinite(tensor) for tensor in _floating(batch))


def as_json(number: float) -> float | str:
    """A number that JSON knows, or its name."""
    return number if math.isfinite(number) else repr(float(number))


def _floating(value: Any) -> Iterator[torch.Tensor]:
    leaves = [part for item in value.values() for part in tree_leaves(item)] if isinstance(value, Mapping) else None
    for leaf in tree_leaves(value) if leaves is None else leaves:
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            yield leaf


@torch.no_grad()
def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())


@torch.no_grad()
def _count_nonfinite(tensor: torch.Tensor) -> int:
    return int(tensor.numel() - torch.isfinite(tensor.detach()).sum())
