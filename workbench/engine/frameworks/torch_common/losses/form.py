"""What the autograd graph of a loss says about its form: of which means and sums over the batch it is made."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
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
#: those of them that add
_ADDING = ("Add", "Sub", "Rsub")
#: operations that make something else of it
_CURVED = ("Sqrt", "Rsqrt", "Pow", "Exp", "Log", "Logsumexp", "LinalgVectorNorm", "Norm", "Std", "Var", "Reciprocal")
#: operations that take some elements
_CHOOSING = ("Index", "IndexSelect", "MaskedSelect", "Cat")
#: operations by which data come in, though their own node shows no other input
_OF_DATA = ("Mm", "Bmm", "Addmm", "Baddbmm", "Convolution", "Embedding", "Index", "Gather")
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
#: nodes that are looked at of one term
_MOST = 40
#: nodes of a whole graph that are looked at for a statistic of the batch
_MOST_OF_GRAPH = 4000


@dataclass(frozen=True, slots=True)
class Part:
    """One term of a loss, as far as it is a linear combination of terms.

    ``kind``: "call" (its node is one that ``parts_of_form`` was given), "mean", "sum", "curved" (a root, a power or a
    quotient of averages, whose mean over pieces is not that of the whole), "weights" (of parameters alone) or "other".
    ``divisor``: what the term is divided by, a scalar; None: nothing. ``is_added``: whether something without a
    gradient is added to it, as ``sum()`` of a list of losses does. ``scale``: by what number the loss holds the term,
    ``divisor`` included; None: not by a number alone. ``products``: the nodes that multiply and divide it.
    """

    kind: str
    node: Any
    divisor: torch.Tensor | None = None
    is_added: bool = False
    scale: torch.Tensor | float | None = 1.0
    products: tuple[Any, ...] = ()


def parts_of_form(loss: torch.Tensor, known: Collection[Any] = ()) -> Iterator[Part]:
    """The terms of which a loss is a linear combination; none of one without a graph. ``known``: nodes that are a term
    of their own."""
    waiting = [] if loss.grad_fn is None else [Part("other", loss.grad_fn)]
    for _ in range(_MOST):
        if not waiting:
            return
        part = waiting.pop()
        kind, inputs = kind_of(part.node), _inputs(part.node)
        if part.node in known:
            yield replace(part, kind="call")
        elif is_of_parameters(part.node):
            yield replace(part, kind="weights")
        elif (kind == "Dot" and len(inputs) == 1) or (kind == "Sum" and not _is_of_losses(part.node)):
            yield replace(part, kind="sum")
        elif kind == "Mean":
            yield replace(part, kind="mean")
        elif kind in _CURVED or (kind in ("Mul", "Div") and _is_of_several(inputs)) or _is_divisor(part.node, kind):
            yield replace(part, kind="curved")
        elif kind in ("Sum", "Stack") or kind in _LINEAR:
            by = _product(part.divisor, _divisor(part.node)) if kind == "Div" else part.divisor
            is_added = part.is_added or (kind in _ADDING and len(inputs) == 1) or kind in ("Sum", "Stack")
            products = (*part.products, part.node) if kind in ("Mul", "Div") else part.products
            waiting += [
                Part("other", below, by, is_added, _scaled(part.scale, part.node, turn), products)
                for turn, (below, _) in enumerate(part.node.next_functions)
                if below is not None
            ]
        else:
            yield part
    yield from waiting


def factors_of(part: Part, *, without_divisor: bool) -> Iterator[float]:
    """The numbers that multiply and, unless ``without_divisor``, divide a term, but 0. Waits for the device."""
    for node in part.products:
        kind, is_first = kind_of(node), node.next_functions[0][0] is not None
        other = node._saved_other if is_first else node._saved_self
        is_number = isinstance(other, torch.Tensor) and other.numel() == 1 and len(_inputs(node)) == 1
        if is_number and not (kind == "Div" and without_divisor) and float(other):
            yield float(other)


def is_over_samples(node: Any, samples: int) -> bool:
    """Whether a term that ends in a sum adds up ``samples`` samples: they are not averaged before."""
    found = False
    for _ in range(_MOST):
        kind, inputs = kind_of(node), _inputs(node)
        if len(inputs) != 1 or (kind not in ("Mean", "Sum") and kind not in _LINEAR):
            break
        if kind in ("Mean", "Sum"):
            shape = shape_of(node)
            dims = _dims(node, len(shape))
            if len(dims) == len(shape) or _dim_of_samples(shape, samples) in dims:
                found = kind == "Sum"
        node = inputs[0]
    return found


def chosen_elements(node: Any) -> int | None:
    """Over how many elements a mean is whose elements the cell chose, or put together, from those of the batch; None
    where it takes what there is."""
    count, waiting = _reduced(node), _inputs(node)
    for _ in range(_MOST):
        if not waiting:
            return None
        below = waiting.pop(0)
        kind = kind_of(below)
        if kind in _CHOOSING:
            return count
        if kind == "Mean":
            count *= _reduced(below)
        if kind not in _OF_DATA and kind != "Stack":
            waiting += _inputs(below)
    return None


def weights_of_sum(node: Any) -> torch.Tensor | None:
    """What a sum multiplies its elements by, or whether it takes them (a mask), in the shape of the elements or in one
    that is broadcast to it; None: neither."""
    for _ in range(_MOST):
        kind, inputs = kind_of(node), _inputs(node)
        if len(inputs) != 1:
            return None
        if kind in ("Where", "MaskedFill"):
            return _mask_of(node)
        if kind == "Dot":
            other = node._saved_tensor if node.next_functions[0][0] is not None else node._saved_self
            return other.detach()
        if kind == "Mul":
            factor = node._saved_other if node.next_functions[-1][0] is None else node._saved_self
            if factor is not None and factor.dim():
                return factor.detach()
        if kind not in ("Sum", "Mean") and kind not in _LINEAR:
            return None
        node = inputs[0]
    return None


def _mask_of(node: Any) -> torch.Tensor:
    """Where a node takes what has a gradient."""
    if kind_of(node) == "MaskedFill":
        return ~node._saved_mask
    return node._saved_condition if node.next_functions[0][0] is not None else ~node._saved_condition


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
        kind, inputs = kind_of(node), _inputs(node)
        is_linear = kind in _LINEAR and not (kind in ("Mul", "Div") and len(inputs) > 1)
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
    if not hasattr(node, "_saved_dim") or kind_of(node) in _KEEPS_SAMPLES_APART or len(_inputs(node)) != 1:
        return False
    shape = shape_of(node)
    if not shape or 0 not in _dims(node, len(shape)):
        return False
    return shape[0] == samples or (shape[0] % samples == 0 and samples not in shape[1:])


def compares_samples(scores: torch.Tensor) -> bool:
    """Whether ``scores`` are products of what the model made of samples, and not of a layer's weights."""
    node = scores.grad_fn
    for _ in range(_MOST):
        if node is None:
            return False
        inputs = _inputs(node)
        if kind_of(node) in ("Mm", "Bmm"):
            return not any(is_of_parameters(below) for below in inputs)
        inputs = [below for below in inputs if not is_of_parameters(below)]
        if kind_of(node) in _OF_DATA or len(inputs) != 1:
            return False
        node = inputs[0]
    return False


def holds_comparison(loss: torch.Tensor, samples: int) -> bool:
    """Whether a loss is made of products or distances of each of ``samples`` samples with each, such as InfoNCE written
    by hand: what lies between it and the last layers of the model is looked at."""
    waiting, seen = [loss.grad_fn], 0
    while waiting and seen < _MOST:
        node = waiting.pop(0)
        seen += 1
        if node is None or is_of_parameters(node):
            continue
        kind, inputs = kind_of(node), _inputs(node)
        if kind in _DISTANCES or (kind in ("Mm", "Bmm") and _is_of_each_with_each(node, inputs)):
            return True
        if kind in ("Add", "Sub", "Rsub", "Mul") and _pairs_samples(node, samples):
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
        below = next(iter(_inputs(below)), None) if kind_of(below) in _LINEAR else None
        if below is None:
            break
    return _shape(node, number)


def kind_of(node: Any) -> str:
    """The operation of a node, such as "Mul"."""
    return type(node).__name__.partition("Backward")[0]


def is_of_parameters(node: Any) -> bool:
    """Whether a node is a function of one parameter alone, such as a penalty on weights."""
    for _ in range(_MOST):
        if kind_of(node) == "AccumulateGrad":
            return True
        inputs = _inputs(node)
        if kind_of(node) in _OF_DATA or len(inputs) != 1:
            return False
        node = inputs[0]
    return False


def _inputs(node: Any) -> list[Any]:
    return [below for below, _ in node.next_functions if below is not None]


def shape_of(node: Any) -> Sequence[int]:
    """The shape of the only input of a node that has a gradient: of what a sum or a mean is over."""
    return _shape(*next(found for found in node.next_functions if found[0] is not None))


def sizes_of(node: Any) -> list[int]:
    """How many samples, or elements of them, a sum may be over: along its dim 0, along its dims 0 and 1, and so on."""
    return list(itertools.accumulate(shape_of(node), operator.mul))


def _shape(below: Any, number: int) -> Sequence[int]:
    """The shape of what a node put out."""
    if kind_of(below) == "AccumulateGrad":
        return below.variable.shape
    return below._input_metadata[number].shape  # autograd's input is what the forward pass put out


def _dims(node: Any, length: int) -> set[int]:
    """The dims along which a node reduces a tensor of ``length`` dims: all, where it names none."""
    dims = getattr(node, "_saved_dim", None)
    dims = (dims,) if isinstance(dims, int) else dims
    # autograd shows -1 as an unsigned number of 64 bits
    return {(dim - 2**64 if dim >= 2**63 else dim) % length for dim in dims} if dims and length else set(range(length))


def _reduced(node: Any) -> int:
    """How many elements a sum or a mean makes one of."""
    shape = shape_of(node)
    return math.prod(shape[dim] for dim in _dims(node, len(shape)))


def _dim_of_samples(shape: Sequence[int], samples: int) -> int | None:
    """The dim of a tensor of this shape along which ``samples`` samples lie; of several that could be, the first."""
    equal = [dim for dim, size in enumerate(shape) if size == samples]
    multiple = [dim for dim, size in enumerate(shape) if samples and size and size % samples == 0]
    return next(iter(equal + multiple), None)


def _is_of_several(inputs: list[Any]) -> bool:
    return len([node for node in inputs if not is_of_parameters(node)]) > 1


def _is_of_losses(node: Any) -> bool:
    """Whether a sum is one of losses that were stacked, and not one of samples."""
    waiting = [node]
    for _ in range(_MOST // 4):
        if not waiting:
            return False
        below = _inputs(waiting.pop(0))
        if any(kind_of(found) == "Stack" for found in below):
            return True
        waiting += [found for found in below if kind_of(found) in _LINEAR]
    return False


def _divisor(node: Any) -> torch.Tensor | None:
    """What a node divides by; None where that has a gradient itself, or is not one number."""
    if node.next_functions[-1][0] is not None:
        return None
    other = node._saved_other
    return other.detach().reshape(()) if isinstance(other, torch.Tensor) and other.numel() == 1 else None


def _is_divisor(node: Any, kind: str) -> bool:
    """Whether a quotient is of a number and something with a gradient that is not of weights alone."""
    below = node.next_functions[-1][0] if kind == "Div" else None
    return below is not None and not is_of_parameters(below)


def _scaled(scale: torch.Tensor | float | None, node: Any, turn: int) -> torch.Tensor | float | None:
    """``scale``, times that by which a linear operation holds its input number ``turn``; None: by no number alone."""
    kind = kind_of(node)
    if scale is None or kind not in ("Add", "Sub", "Rsub", "Neg", "Mul", "Div"):
        return scale
    if kind == "Neg":
        return -scale
    if kind in ("Mul", "Div"):
        other = node._saved_other if turn == 0 else node._saved_self
        if node.next_functions[1 - turn][0] is not None or not isinstance(other, torch.Tensor) or other.numel() != 1:
            return None
        number = other.detach().reshape(())
        return scale * number if kind == "Mul" else scale / number if turn == 0 else None
    is_second = turn == 1 if kind != "Rsub" else len(node.next_functions) == 1 or turn == 0
    alpha = getattr(node, "_saved_alpha", 1) if is_second else 1
    return -scale * alpha if is_second and kind != "Add" else scale * alpha


def _product(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first * second
