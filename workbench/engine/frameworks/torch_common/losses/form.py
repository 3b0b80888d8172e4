"""What the autograd graph of a loss says about its form: of which means and sums over the batch it is made."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from workbench.engine.frameworks.torch_common.losses.graph_nodes import (
    LINEAR,
    MOST_NODES,
    OF_DATA,
    inputs_of,
    is_of_parameters,
    kind_of,
    reduced_dims,
    reduced_elements,
    shape_of,
)

#: those of them that add
_ADDING = ("Add", "Sub", "Rsub")
#: operations that make something else of it
_CURVED = ("Sqrt", "Rsqrt", "Pow", "Exp", "Log", "Logsumexp", "LinalgVectorNorm", "Norm", "Std", "Var", "Reciprocal")
#: operations that take some elements
_CHOOSING = ("Index", "IndexSelect", "MaskedSelect", "Cat")


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
    for _ in range(MOST_NODES):
        if not waiting:
            return
        part = waiting.pop()
        kind, inputs = kind_of(part.node), inputs_of(part.node)
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
        elif kind in ("Sum", "Stack") or kind in LINEAR:
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
        is_number = isinstance(other, torch.Tensor) and other.numel() == 1 and len(inputs_of(node)) == 1
        if is_number and not (kind == "Div" and without_divisor) and float(other):
            yield float(other)


def is_over_samples(node: Any, samples: int) -> bool:
    """Whether a term that ends in a sum adds up ``samples`` samples: they are not averaged before."""
    found = False
    for _ in range(MOST_NODES):
        kind, inputs = kind_of(node), inputs_of(node)
        if len(inputs) != 1 or (kind not in ("Mean", "Sum") and kind not in LINEAR):
            break
        if kind in ("Mean", "Sum"):
            shape = shape_of(node)
            dims = reduced_dims(node, len(shape))
            if len(dims) == len(shape) or _dim_of_samples(shape, samples) in dims:
                found = kind == "Sum"
        node = inputs[0]
    return found


def chosen_elements(node: Any) -> int | None:
    """Over how many elements a mean is whose elements the cell chose, or put together, from those of the batch; None
    where it takes what there is."""
    count, waiting = reduced_elements(node), inputs_of(node)
    for _ in range(MOST_NODES):
        if not waiting:
            return None
        below = waiting.pop(0)
        kind = kind_of(below)
        if kind in _CHOOSING:
            return count
        if kind == "Mean":
            count *= reduced_elements(below)
        if kind not in OF_DATA and kind != "Stack":
            waiting += inputs_of(below)
    return None


def weights_of_sum(node: Any) -> torch.Tensor | None:
    """What a sum multiplies its elements by, or whether it takes them (a mask), in the shape of the elements or in one
    that is broadcast to it; None: neither."""
    for _ in range(MOST_NODES):
        kind, inputs = kind_of(node), inputs_of(node)
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
        if kind not in ("Sum", "Mean") and kind not in LINEAR:
            return None
        node = inputs[0]
    return None


def _mask_of(node: Any) -> torch.Tensor:
    """Where a node takes what has a gradient."""
    if kind_of(node) == "MaskedFill":
        return ~node._saved_mask
    return node._saved_condition if node.next_functions[0][0] is not None else ~node._saved_condition


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
    for _ in range(MOST_NODES // 4):
        if not waiting:
            return False
        below = inputs_of(waiting.pop(0))
        if any(kind_of(found) == "Stack" for found in below):
            return True
        waiting += [found for found in below if kind_of(found) in LINEAR]
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
