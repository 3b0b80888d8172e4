"""Reads nodes of the autograd graph: what an operation is, its inputs, their shapes."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

#: operations on numbers under which an average stays one
LINEAR = (
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
#: operations by which data come in, though their own node shows no other input
OF_DATA = ("Mm", "Bmm", "Addmm", "Baddbmm", "Convolution", "Embedding", "Index", "Gather")
#: nodes that are looked at of one term
MOST_NODES = 40


def kind_of(node: Any) -> str:
    """The operation of a node, such as "Mul"."""
    return type(node).__name__.partition("Backward")[0]


def is_of_parameters(node: Any) -> bool:
    """Whether a node is a function of one parameter alone, such as a penalty on weights."""
    for _ in range(MOST_NODES):
        if kind_of(node) == "AccumulateGrad":
            return True
        inputs = inputs_of(node)
        if kind_of(node) in OF_DATA or len(inputs) != 1:
            return False
        node = inputs[0]
    return False


def inputs_of(node: Any) -> list[Any]:
    """The nodes whose outputs a node takes, of those that have a gradient."""
    return [below for below, _ in node.next_functions if below is not None]


def shape_of(node: Any) -> Sequence[int]:
    """The shape of the only input of a node that has a gradient: of what a sum or a mean is over."""
    return output_shape(*next(found for found in node.next_functions if found[0] is not None))


def sizes_of(node: Any) -> list[int]:
    """How many samples, or elements of them, a sum may be over: along its dim 0, along its dims 0 and 1, and so on."""
    return list(itertools.accumulate(shape_of(node), operator.mul))


def output_shape(below: Any, number: int) -> Sequence[int]:
    """The shape of what a node put out."""
    if kind_of(below) == "AccumulateGrad":
        return below.variable.shape
    return below._input_metadata[number].shape  # autograd's input is what the forward pass put out


def reduced_dims(node: Any, length: int) -> set[int]:
    """The dims along which a node reduces a tensor of ``length`` dims: all, where it names none."""
    dims = getattr(node, "_saved_dim", None)
    dims = (dims,) if isinstance(dims, int) else dims
    # autograd shows -1 as an unsigned number of 64 bits
    return {(dim - 2**64 if dim >= 2**63 else dim) % length for dim in dims} if dims and length else set(range(length))


def reduced_elements(node: Any) -> int:
    """How many elements a sum or a mean makes one of."""
    shape = shape_of(node)
    return math.prod(shape[dim] for dim in reduced_dims(node, len(shape)))
