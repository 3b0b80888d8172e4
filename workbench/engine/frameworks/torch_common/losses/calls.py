"""Calls of torch's loss functions, and over what their results are averages.

torch's loss functions are replaced, while a cell trains, by functions of the same result that also note their
arguments. So the loss of a piece of the batch can be weighted by what is in it, also where ``ignore_index`` leaves out
labels or a class has a weight.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn import functional

from workbench.engine.frameworks.torch_common.losses.sites import Site, site_of

#: a number on the host, or a scalar on the device that the host need not wait for
Number = float | torch.Tensor

#: torch's loss functions that have a ``reduction``
_LOSS_FUNCTIONS = tuple(
    name
    for name, function in vars(functional).items()
    if inspect.isfunction(function)
    and not name.startswith("_")
    and "reduction" in inspect.signature(function).parameters
)
#: torch's loss functions whose mean is one over all elements
_OVER_ELEMENTS = frozenset(
    (
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "soft_margin_loss",
        "poisson_nll_loss",
        "hinge_embedding_loss",
    )
)
#: those of them that divide by the sum of their weights
_OVER_WEIGHTS = ("mse_loss", "l1_loss")
#: functions and methods of tensors whose result may be a term of a loss, if it is one number
_SCALARS = ("mean", "sum", "dot", "matmul", "__matmul__")
#: those that put numbers into an order
_ORDERS = ("argsort", "sort", "topk", "kthvalue", "median", "quantile")
#: those that divide
_DIVISIONS = ("div", "div_", "divide", "divide_", "true_divide", "true_divide_", "__truediv__", "__itruediv__")


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else int(tensor._version)  # of an inference tensor torch counts none


@dataclass(frozen=True, slots=True)
class Made:
    """What a function returned. ``node``: of the autograd graph, that made the result; ``version``: of the result,
    which an operation in place changes, such as ``loss += x``."""

    result: torch.Tensor
    node: Any = field(init=False)
    version: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "node", self.result.grad_fn)
        object.__setattr__(self, "version", _version(self.result))

    @property
    def stands(self) -> bool:
        """Whether the result is still what the function returned."""
        return _version(self.result) == self.version


@dataclass(frozen=True, slots=True)
class LossCall(Made):
    """A call of one of torch's loss functions: its result, its name and its arguments.

    ``elements``: how many the result is a mean of, where no loss function of torch made it.
    """

    name: str
    arguments: dict[str, Any]
    elements: float | None = None

    @property
    def reduction(self) -> str:
        """ "mean", "sum", "none" or "batchmean"."""
        if self.elements is not None:
            return "mean"
        size_average, reduce = self.arguments.get("size_average"), self.arguments.get("reduce")
        if size_average is None and reduce is None:
            return str(self.arguments["reduction"])
        return torch.nn._reduction.legacy_get_string(size_average, reduce, emit_warning=False)

    @property
    def averages_over_labels(self) -> bool:
        """Whether the result is a mean over labels, some of which may be ignored or count more than others."""
        return "ignore_index" in self.arguments and self.reduction == "mean"

    @property
    def ignores_some(self) -> bool:
        """Whether some labels are ignored; waits for the device."""
        target = self.arguments["target"]
        return not target.is_floating_point() and bool((target == _ignored(self.arguments)).any())

    def count(self) -> Number | None:
        """Over what a mean averages: labels, elements or rows, of which a cell may have chosen some; None: no mean."""
        if self.elements is not None:
            return self.elements
        if self.averages_over_labels:
            return count_of_labels(self.arguments)
        if self.reduction not in ("mean", "batchmean"):
            return None
        weight = self.arguments.get("weight")
        if self.name in _OVER_WEIGHTS and weight is not None:
            return number_of(weight.sum(dtype=torch.float64))
        if self.name in _OVER_ELEMENTS:
            shapes = self.arguments["input"].shape, self.arguments["target"].shape
            return float(math.prod(torch.broadcast_shapes(*shapes)))
        first = next(iter(self.arguments.values()))
        dim = 1 if self.name == "ctc_loss" and first.dim() == 3 else 0
        return float(first.shape[dim]) if first.dim() > dim else None

    @property
    def class_weights(self) -> float:
        """A number for the weights of classes, of which others have another; 1: there are none. Waits for the
        device."""
        names = ("weight", "pos_weight") if self.averages_over_labels else ("pos_weight",)
        found = [
            weight.detach().double().flatten().cpu()
            for name in names
            if (weight := self.arguments.get(name)) is not None
        ]
        return 1.0 + sum(float(each @ torch.arange(1, 1 + len(each), dtype=each.dtype).sqrt()) for each in found)

    def filled(self) -> LossCall:
        """The same, but a mean over nothing is 0 without a gradient."""
        count = self.count()
        if count is None or (isinstance(count, float) and count):
            return self
        is_empty = torch.as_tensor(count, device=self.result.device) == 0
        return replace(self, result=torch.where(is_empty, torch.zeros_like(self.result), self.result))


@dataclass(slots=True)
class Recorded:
    """What was called to make a loss. ``calls``: torch's loss functions; ``scalars``: means and sums of the
    cell's own, by their autograd node. ``sites``: where these were called; ``repeated``: numbers of those that are told
    apart by their order alone. ``ranked``: lengths of vectors of numbers that were put into an order.
    ``fills``: a mean over nothing is 0, as other pieces hold its elements, also one that the cell divides by hand;
    ``divisions``: node of such a quotient -> whether its divisor was 0, and is infinite in its place."""

    calls: list[LossCall] = field(default_factory=list)
    scalars: dict[Any, Made] = field(default_factory=dict)
    sites: dict[Any, Site] = field(default_factory=dict)
    fills: bool = False
    divisions: dict[Any, torch.Tensor | bool] = field(default_factory=dict)
    repeated: set[int] = field(default_factory=set)
    ranked: set[int] = field(default_factory=set)
    _numbers: set[int] = field(default_factory=set)

    def scalar(self, node: Any, call: LossCall | None) -> torch.Tensor | None:
        """The result of ``call``, or of what of the cell's own made ``node``; None where it was changed in place."""
        made: Made | None = self.scalars.get(node) if call is None else call
        return made.result if made is not None and made.stands else None

    def note_site(self, result: torch.Tensor) -> None:
        """Note where ``result`` was made, and, of a loop whose variables are no numbers or texts, how many before."""
        site = site_of(sys._getframe(2))
        while site.number in self._numbers:
            site = replace(site, number=site.number + 1)
            self.repeated.add(site.number)
        self._numbers.add(site.number)
        self.sites[result.grad_fn] = site

    def number_of_site(self, node: Any) -> int | None:
        """The number of the site of what ``node`` made; None: it was not noted."""
        site = self.sites.get(node)
        return None if site is None else site.number


class _Recorder:
    """Notes what is called while it is active; at most one is."""

    def __init__(self) -> None:
        self.found: Recorded | None = None


_recorder = _Recorder()


@contextmanager
def noted_losses() -> Iterator[None]:
    """While entered, torch's loss functions, means and sums note their calls where ``loss_term`` asks for them."""
    originals: list[tuple[Any, str, Any, Callable[..., Any]]] = [
        *((functional, name, getattr(functional, name), _noting) for name in _LOSS_FUNCTIONS),
        *(
            (owner, name, getattr(owner, name), _noting_scalar)
            for owner in (torch, torch.Tensor)
            for name in _SCALARS
            if hasattr(owner, name)
        ),
        *((owner, name, getattr(owner, name), _noting_order) for owner in (torch, torch.Tensor) for name in _ORDERS),
        *(
            (owner, name, getattr(owner, name), _noting_division)
            for owner in (torch, torch.Tensor)
            for name in _DIVISIONS
            if hasattr(owner, name)
        ),
    ]
    for owner, name, original, noting in originals:
        setattr(owner, name, noting(name, original))
    try:
        yield
    finally:
        for owner, name, original, _ in originals:
            setattr(owner, name, original)


def _noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def noting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if torch.compiler.is_compiling() or _recorder.found is None:
            return result
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return _noted(_recorder.found, LossCall(result, name, bound.arguments))

    return noting


def _noting_scalar(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def noting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        found = _recorder.found
        if torch.compiler.is_compiling() or found is None or result.dim() or result.grad_fn is None:
            return result
        if name == "mean" and found.fills and not (args[0] if args else kwargs["input"]).numel():
            return _noted(found, LossCall(result, name, {}, 0.0))
        found.scalars[result.grad_fn] = Made(result)
        found.note_site(result)
        return result

    return noting


def _noting_division(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def noting(*args: Any, **kwargs: Any) -> Any:
        found = _recorder.found
        if found is None or not found.fills or len(args) != 2 or torch.compiler.is_compiling():
            return original(*args, **kwargs)
        numerator, divisor = args
        if not isinstance(numerator, torch.Tensor) or numerator.dim() or not numerator.requires_grad:
            return original(*args, **kwargs)
        is_zero = _is_zero(divisor)
        if is_zero is False:
            return original(*args, **kwargs)
        # a quotient by infinity is 0, and so is its gradient
        by = torch.where(is_zero, math.inf, divisor) if isinstance(is_zero, torch.Tensor) else math.inf
        result = original(numerator, by, **kwargs)
        found.divisions[result.grad_fn] = is_zero
        return result

    return noting


def _noting_order(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def noting(*args: Any, **kwargs: Any) -> Any:
        numbers = args[0] if args else kwargs.get("input")
        found = None if torch.compiler.is_compiling() else _recorder.found
        if (
            found is not None
            and isinstance(numbers, torch.Tensor)
            and numbers.is_floating_point()
            and numbers.dim() == 1
        ):
            found.ranked.add(len(numbers))
        return original(*args, **kwargs)

    return noting


def _is_zero(divisor: Any) -> torch.Tensor | bool:
    """Whether a number is 0; of a scalar on a device a tensor, as the host need not wait."""
    if not isinstance(divisor, torch.Tensor):
        return bool(divisor == 0)
    if divisor.numel() != 1 or divisor.requires_grad:
        return False
    return bool(divisor == 0) if divisor.device.type == "cpu" else divisor == 0


def _noted(found: Recorded, call: LossCall) -> torch.Tensor:
    """Note a call; its result, which is filled where that is asked for."""
    if found.fills and call.reduction in ("mean", "batchmean"):
        call = call.filled()
    found.calls.append(call)
    found.note_site(call.result)
    return call.result


def calls_by_node(calls: Sequence[LossCall]) -> dict[Any, LossCall]:
    """Those that reduced their losses, by the autograd node of the result."""
    return {call.node: call for call in calls if call.reduction != "none"}


@contextmanager
def recorded_calls(*, fills: bool = False) -> Iterator[Recorded]:
    """Those that are made while it is entered; ``fills``: see ``Recorded``."""
    before, _recorder.found = _recorder.found, Recorded(fills=fills)
    try:
        yield _recorder.found
    finally:
        _recorder.found = before


def count_of_labels(arguments: dict[str, Any]) -> Number:
    """Over what a loss function with these arguments averages: its labels, or the sum of their weights.

    Where targets are probabilities, it averages over the rows of classes.
    """
    target, weight = arguments["target"], arguments.get("weight")
    if target.is_floating_point():
        return float(target.numel() / target.shape[min(1, target.dim() - 1)])
    counted = target != _ignored(arguments)
    if weight is not None:
        total = torch.where(counted, weight[torch.where(counted, target, 0)], 0).sum(dtype=torch.float64)
    else:
        total = counted.sum(dtype=torch.float64)
    return number_of(total)


def _ignored(arguments: dict[str, Any]) -> int:
    index = arguments["ignore_index"]
    return -100 if index is None else int(index)


def number_of(total: torch.Tensor) -> Number:
    """A scalar on the host; on another device as it is, as the host need not wait."""
    return float(total) if total.device.type == "cpu" else total.detach()
