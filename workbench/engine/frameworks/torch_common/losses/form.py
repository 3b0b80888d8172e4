"""What the autograd graph of a loss says about its form: a sum, a quotient, or another function of averages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

#: operations on numbers under which an average stays one
_LINEAR = (
    "Add",
    "Sub",
    "Rsub",
    "Neg",
    "Mul",
    "Div",
    "ToCopy",
    "View",
    "ReshapeAlias",
    "UnsafeView",
    "Squeeze",
    "Unsqueeze",
)
#: operations that make something else of it
_CURVED = ("Sqrt", "Rsqrt", "Pow", "Exp", "Log", "Logsumexp", "LinalgVectorNorm", "Norm", "Std", "Var", "Reciprocal")
#: operations by which data come in, though their own node shows no other input
_OF_DATA = ("Mm", "Bmm", "Addmm", "Baddbmm", "Convolution", "Embedding", "Index", "Gather")
#: distances of each sample with each
_DISTANCES = ("Cdist", "EuclideanDist")
#: nodes that are looked at of one term
_MOST = 40


def parts_of_form(loss: torch.Tensor) -> Iterator[tuple[str, Any, float]]:
    """The terms of which a loss is a linear combination, as far as they are no averages of the batch.

    Each as ("sum", its node, the number that it is divided by (1: none)), or ("curved", its node, 1): a root, a power
    or a quotient of averages, whose mean over pieces is not that of the whole.
    """
    waiting: list[tuple[Any, float]] = [(loss.grad_fn, 1.0)]
    for _ in range(_MOST):
        if not waiting:
            return
        node, divisor = waiting.pop()
        if node is None or is_of_parameters(node):
            continue
        kind, inputs = kind_of(node), [below for below, _ in node.next_functions if below is not None]
        if kind == "Sum":
            if _is_of_losses(node):
                waiting += [(below, divisor) for below in inputs]
            else:
                yield "sum", node, divisor
        elif kind in _CURVED or (kind in ("Mul", "Div") and _is_of_several(inputs)):
            yield "curved", node, 1.0
        elif kind == "Stack" or kind in _LINEAR:
            by = divisor * _divisor(node) if kind == "Div" else divisor
            waiting += [(below, by) for below in inputs]


def compares_samples(scores: torch.Tensor) -> bool:
    """Whether ``scores`` are products of what the model made of samples, and not of a layer's weights."""
    node = scores.grad_fn
    for _ in range(_MOST):
        if node is None:
            return False
        inputs = [below for below, _ in node.next_functions if below is not None]
        if kind_of(node) in ("Mm", "Bmm"):
            return not any(is_of_parameters(below) for below in inputs)
        inputs = [below for below in inputs if not is_of_parameters(below)]
        if kind_of(node) in _OF_DATA or len(inputs) != 1:
            return False
        node = inputs[0]
    return False


def holds_comparison(loss: torch.Tensor) -> bool:
    """Whether a loss is made of products or distances of each sample with each, such as InfoNCE written by hand: what
    lies between it and the last layers of the model is looked at."""
    waiting, seen = [loss.grad_fn], 0
    while waiting and seen < _MOST:
        node = waiting.pop(0)
        seen += 1
        if node is None or is_of_parameters(node):
            continue
        kind, inputs = kind_of(node), [below for below, _ in node.next_functions if below is not None]
        if kind in _DISTANCES or (kind in ("Mm", "Bmm") and _is_of_each_with_each(node, inputs)):
            return True
        if kind not in _OF_DATA:
            waiting += inputs
    return False


def _is_of_each_with_each(node: Any, inputs: list[Any]) -> bool:
    """Whether a product is of two things that depend on the batch, and square: of one matrix of samples each."""
    if len(inputs) < 2 or any(is_of_parameters(below) for below in inputs):
        return False
    *batch, rows, _ = node._saved_self_sym_sizes if kind_of(node) == "Mm" else node._saved_self.shape
    columns = (node._saved_mat2_sym_sizes if kind_of(node) == "Mm" else node._saved_mat2.shape)[-1]
    return rows == columns > 1 and all(size == 1 for size in batch)


def kind_of(node: Any) -> str:
    """The operation of a node, such as "Mul"."""
    return type(node).__name__.partition("Backward")[0]


def is_of_parameters(node: Any) -> bool:
    """Whether a node is a function of one parameter alone, such as a penalty on weights."""
    for _ in range(_MOST):
        if kind_of(node) == "AccumulateGrad":
            return True
        inputs = [below for below, _ in node.next_functions if below is not None]
        if kind_of(node) in _OF_DATA or len(inputs) != 1:
            return False
        node = inputs[0]
    return False


def _is_of_several(inputs: list[Any]) -> bool:
    return len([node for node in inputs if not is_of_parameters(node)]) > 1


def _is_of_losses(node: Any) -> bool:
    """Whether a sum is one of losses that were stacked, and not one of samples."""
    waiting = [node]
    for _ in range(_MOST // 4):
        if not waiting:
            return False
        below = [found for found, _ in waiting.pop(0).next_functions if found is not None]
        if any(kind_of(found) == "Stack" for found in below):
            return True
        waiting += [found for found in below if kind_of(found) in _LINEAR]
    return False


def _divisor(node: Any) -> float:
    other = getattr(node, "_saved_other", None)
    return float(other) if isinstance(other, torch.Tensor) and other.numel() == 1 else 1.0
