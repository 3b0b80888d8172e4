"""Whether a loss is a function of several samples together, as its autograd graph says: of a statistic of the batch, or
of comparisons of samples with each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from workbench.engine.frameworks.torch_common.losses.graph_nodes import (
    LINEAR,
    MOST_NODES,
    OF_DATA,
    inputs_of,
    is_of_parameters,
    kind_of,
    output_shape,
    reduced_dims,
    shape_of,
)

#: distances of each sample with each
_DISTANCES = ("Cdist", "EuclideanDist")
#: operations with a dim that combine nothing along it
_KEEPS_SAMPLES_APART = (
    "Cat",
    "Stack",
    "Select",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Unbind",
    "Split",
    "SplitWithSizes",
    "Gather",
    "IndexSelect",
    "IndexAdd",
    "Scatter",
    "ScatterAdd",
    "Diagonal",
    "Transpose",
    "Flip",
    "Unfold",
    "Glu",
)
#: nodes of a whole graph that are looked at for a statistic of the batch
_MOST_OF_GRAPH = 4000


def joins_samples(loss: torch.Tensor, samples: int) -> bool:
    """Whether a loss holds a function of a statistic over the batch, such as the deviation of each feature, or a sum
    for each that is divided by counts: whatever is reduced along the dimension of ``samples`` samples, and not added up
    to the loss alone."""
    if samples < 2 or loss.grad_fn is None:
        return False
    start = (loss.grad_fn, True, False)
    waiting, seen = [start], {start}
    while waiting and len(seen) < _MOST_OF_GRAPH:
        node, is_affine, is_divided = waiting.pop()
        kind, inputs = kind_of(node), inputs_of(node)
        is_linear = kind in LINEAR and not (kind in ("Mul", "Div") and len(inputs) > 1)
        stays = is_affine and (is_linear or kind in ("Mean", "Sum", "Stack"))
        if (not stays or (is_divided and kind == "Sum")) and _reduces_samples(node, samples):
            return True
        divides = is_divided or (kind == "Div" and _divides_by_several(node))
        for below in inputs:
            if (below, stays, divides) not in seen:
                seen.add((below, stays, divides))
                waiting.append((below, stays, divides))
    return False


def _divides_by_several(node: Any) -> bool:
    """Whether a node divides by numbers that have no gradient."""
    other = node._saved_other if node.next_functions[-1][0] is None else None
    return isinstance(other, torch.Tensor) and other.numel() > 1


def _reduces_samples(node: Any, samples: int) -> bool:
    """Whether a node combines numbers along a dim 0 that can only be that of the samples."""
    if not hasattr(node, "_saved_dim") or kind_of(node) in _KEEPS_SAMPLES_APART or len(inputs_of(node)) != 1:
        return False
    shape = shape_of(node)
    if not shape or 0 not in reduced_dims(node, len(shape)):
        return False
    return shape[0] == samples or (shape[0] % samples == 0 and samples not in shape[1:])


def compares_samples(scores: torch.Tensor) -> bool:
    """Whether ``scores`` are products of what the model made of samples, and not of a layer's weights."""
    node = scores.grad_fn
    for _ in range(MOST_NODES):
        if node is None:
            return False
        inputs = inputs_of(node)
        if kind_of(node) in ("Mm", "Bmm"):
            return not any(is_of_parameters(below) for below in inputs)
        inputs = [below for below in inputs if not is_of_parameters(below)]
        if kind_of(node) in OF_DATA or len(inputs) != 1:
            return False
        node = inputs[0]
    return False


def holds_comparison(loss: torch.Tensor, samples: int) -> bool:
    """Whether a loss is made of products or distances of each of ``samples`` samples with each, such as InfoNCE written
    by hand: what lies between it and the last layers of the model is looked at."""
    waiting, seen = [loss.grad_fn], 0
    while waiting and seen < MOST_NODES:
        node = waiting.pop(0)
        seen += 1
        if node is None or is_of_parameters(node):
            continue
        kind, inputs = kind_of(node), inputs_of(node)
        if kind in _DISTANCES or (kind in ("Mm", "Bmm") and _is_of_each_with_each(node, inputs)):
            return True
        if kind in ("Add", "Sub", "Rsub", "Mul") and _pairs_samples(node, samples):
            return True
        if kind not in OF_DATA:
            waiting += inputs
    return False


def _is_of_each_with_each(node: Any, inputs: list[Any]) -> bool:
    """Whether a product is of two things that depend on the batch, and square: of one matrix of samples each."""
    if len(inputs) < 2 or any(is_of_parameters(below) for below in inputs):
        return False
    *batch, rows, _ = node._saved_self_sym_sizes if kind_of(node) == "Mm" else node._saved_self.shape
    columns = (node._saved_mat2_sym_sizes if kind_of(node) == "Mm" else node._saved_mat2.shape)[-1]
    return rows == columns > 1 and all(size == 1 for size in batch)


def _pairs_samples(node: Any, samples: int) -> bool:
    """Whether an operation on elements takes each sample with each: one input has them along a dim where the other is
    broadcast, and the other way round."""
    found = [each for each in node.next_functions if each[0] is not None]
    if samples < 2 or len(found) != 2 or any(is_of_parameters(below) for below, _ in found):
        return False
    first, second = (_before_expansion(below, number) for below, number in found)
    sizes = list(zip(first, second, strict=False)) if len(first) == len(second) else []
    is_wide = [a and a % samples == 0 and b == 1 for a, b in sizes]
    is_high = [b and b % samples == 0 and a == 1 for a, b in sizes]
    return any(is_wide) and any(is_high)


def _before_expansion(node: Any, number: int) -> Sequence[int]:
    """The shape of what a node put out, or what it had before it was expanded to that."""
    below = node
    for _ in range(6):
        if kind_of(below) == "Expand":
            return shape_of(below)
        below = next(iter(inputs_of(below)), None) if kind_of(below) in LINEAR else None
        if below is None:
            break
    return output_shape(node, number)
