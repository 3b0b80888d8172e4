"""What a loss is an average over: samples, labels that count, or nothing (a sum).

torch's loss functions are replaced, while a cell trains, by functions of the same result that also note over what they
averaged. So the loss of a piece of the batch can be weighted by what is in it, also where ``ignore_index`` leaves out
labels or a class has a weight.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from workbench.engine.frameworks.torch_common.losses.form import (
    compares_samples,
    holds_comparison,
    kind_of,
    parts_of_form,
)
from workbench.errors import ConfigError

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


@dataclass(frozen=True, slots=True)
class LossTerm:
    """The loss of one piece of a batch.

    ``value``: a scalar. ``count``: the number (or the sum of weights) of what it is about; None: its samples.
    ``form``: "mean" over ``count``, "total" over ``count`` (to be divided by that of all pieces), or "sum": of the
    whole batch, to be divided by nothing.
    """

    value: torch.Tensor
    count: Number | None = None
    form: str = "mean"


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


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of one of torch's loss functions: its name, its result and its arguments."""

    name: str
    result: torch.Tensor
    arguments: dict[str, Any]

    @property
    def reduction(self) -> str:
        """ "mean", "sum", "none" or "batchmean"."""
        size_average, reduce = self.arguments.get("size_average"), self.arguments.get("reduce")
        if size_average is None and reduce is None:
            return str(self.arguments["reduction"])
        return torch.nn._reduction.legacy_get_string(size_average, reduce, emit_warning=False)

    @property
    def averages_over_labels(self) -> bool:
        """Whether the result is a mean over labels, some of which may be ignored or count more than others."""
        return "ignore_index" in self.arguments and self.reduction == "mean"

    def count(self) -> Number | None:
        """Over what a mean averages: labels or elements, of which a cell may have chosen some; None: unknown."""
        if self.averages_over_labels:
            return count_of_labels(self.arguments)
        if self.reduction != "mean" or self.name not in _OVER_ELEMENTS or self.arguments.get("weight") is not None:
            return None
        return float(math.prod(torch.broadcast_shapes(self.arguments["input"].shape, self.arguments["target"].shape)))


class _Recorder:
    """Notes the calls of loss functions while it is active; at most one is."""

    def __init__(self) -> None:
        self.calls: list[_Call] | None = None


_recorder = _Recorder()


@contextmanager
def noted_losses() -> Iterator[None]:
    """While entered, torch's loss functions note their calls where ``loss_term`` asks for them."""
    originals = {name: getattr(functional, name) for name in _LOSS_FUNCTIONS}
    for name, original in originals.items():
        setattr(functional, name, _noting(name, original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(functional, name, original)


def _noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def noting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if torch.compiler.is_compiling() or _recorder.calls is None:
            return result
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        _recorder.calls.append(_Call(name, result, bound.arguments))
        return result

    return noting


@contextmanager
def _recording() -> Iterator[list[_Call]]:
    before, _recorder.calls = _recorder.calls, []
    try:
        yield _recorder.calls
    finally:
        _recorder.calls = before


def loss_term(
    compute: Callable[[], Any],
    tell: Callable[[str, str], object] | None = None,
    count_of: Callable[[torch.Tensor], Number | None] = lambda loss: None,
) -> LossTerm:
    """The loss that ``compute`` returns: a scalar, or (sum, count).

    ``count_of(loss)`` is asked for the count of a mean that no loss function of torch returned.

    ``tell(name, text)``, if given, learns what a person should know about the average; finding it out may wait for the
    device. Raises ``ConfigError`` for a result that is no loss.
    """
    with _recording() as calls:
        found = compute()
    if isinstance(found, tuple):
        return _total(found)
    value = _scalar(found)
    call = next((call for call in reversed(calls) if call.result is found), None)
    count = count_of(found) if call is None else None
    if tell is not None:
        _tell(found, calls, call is not None or count is not None, tell)
    if call is None:
        return LossTerm(value, count)
    return LossTerm(value, form="sum") if call.reduction == "sum" else LossTerm(value, call.count())


#: nodes of a loss that are looked at for a sum
_MOST_TERMS = 40
_CAUSAL = ("CausalLM", "LMHead")
_PER_TOKEN = (*_CAUSAL, "MaskedLM", "TokenClassification", "ConditionalGeneration", "MaskedImageModeling")
CONTRASTIVE = (
    "the loss compares the samples of a batch with each other: each rank compares those of its own share only, so the "
    "loss is not that of one process with the whole batch"
)
UNKNOWN_COUNT = (
    "the loss is made of an average over labels that are not ignored, and something else: each rank's loss counts by "
    "its samples. Return (loss_sum, count) from loss_fn if it is to count by labels"
)
OF_AVERAGES = (
    "the loss is a root, a power or a quotient of averages over the batch: each rank and gradient accumulation step "
    "computes it for its own samples, so the loss is not that of one process with the whole batch"
)
ENDS_IN_QUOTIENT = (
    "the loss is a sum divided by a number that is not its number of samples, such as a sum of weights: it is averaged "
    "over ranks and gradient accumulation steps by samples. Return (loss_sum, count) from loss_fn"
)
ENDS_IN_SUM = (
    "the loss ends in a sum: it is averaged over ranks and gradient accumulation steps. Return (loss_sum, count) from "
    "loss_fn for a mean over the whole batch, or use a loss function of torch with reduction='sum' for a sum"
)


def _tell(found: torch.Tensor, calls: list[_Call], is_known: bool, tell: Callable[[str, str], object]) -> None:
    means = [call for call in calls if call.averages_over_labels]
    if any(_is_contrastive(call.arguments) for call in means):
        tell("contrastive_loss", CONTRASTIVE)
    elif not is_known and any(_ignores_some(call.arguments) for call in means):
        tell("loss_by_samples", UNKNOWN_COUNT)
    if is_known:
        return
    if holds_comparison(found):
        tell("contrastive_loss", CONTRASTIVE)
    sums = [call for call in calls if call.reduction == "sum"]
    for kind, node, divisor in parts_of_form(found):
        if kind == "curved":
            tell("loss_of_averages", OF_AVERAGES)
        elif divisor == 1:
            tell("loss_is_a_sum", ENDS_IN_SUM)
        elif divisor not in _leading_products(node._saved_self_sym_sizes):
            tell("loss_is_a_sum", ENDS_IN_QUOTIENT)
    if any(call.result.requires_grad and _is_part(call.result, found) for call in sums):
        tell("loss_is_a_sum", ENDS_IN_SUM)


def _is_part(part: torch.Tensor, loss: torch.Tensor) -> bool:
    """Whether a loss holds the sum ``part``, and does not divide it."""
    waiting: list[Any] = [loss.grad_fn]
    for _ in range(_MOST_TERMS):
        if not waiting:
            return False
        node = waiting.pop()
        if node is part.grad_fn:
            return True
        if kind_of(node) in ("Add", "Sub", "Neg", "Mul"):
            waiting += [below for below, _ in node.next_functions if below is not None]
    return False


def _leading_products(shape: Iterable[int]) -> list[float]:
    """Numbers of samples that a tensor of this shape may have: its length along dim 0, along dims 0 and 1, and so
    on."""
    return [float(size) for size in itertools.accumulate(shape, operator.mul)]


def _total(found: tuple[Any, ...]) -> LossTerm:
    if len(found) != 2:
        raise ConfigError(
            f"loss_fn returned a tuple of {len(found)}: return the loss, or (loss_sum, count)", field="loss_fn"
        )
    total, count = found
    if isinstance(count, torch.Tensor) and count.requires_grad:
        raise ConfigError(
            "loss_fn returned two losses (both have a gradient): return their sum, or (loss_sum, count)",
            field="loss_fn",
        )
    if isinstance(count, torch.Tensor):
        count = count.detach().double()
        count = float(count) if count.device.type == "cpu" else count.reshape(())
    if isinstance(count, bool) or not isinstance(count, int | float | torch.Tensor):
        raise ConfigError(
            f"the count of (loss_sum, count) is a {type(count).__name__}: it must be a number", field="loss_fn"
        )
    return LossTerm(_scalar(total), count, "total")


def _scalar(found: Any) -> torch.Tensor:
    """``found`` as a scalar that has a gradient; ``ConfigError`` when it is none."""
    if not isinstance(found, torch.Tensor):
        raise ConfigError(
            f"the loss is a {type(found).__name__}: return a tensor of one number (no .item()), or (loss_sum, count)",
            field="loss_fn",
        )
    if found.numel() != 1:
        raise ConfigError(
            f"the loss has shape {tuple(found.shape)}: return one number, such as loss.mean()", field="loss_fn"
        )
    if found.is_complex():
        raise ConfigError("the loss is complex: return a real number, such as loss.abs()", field="loss_fn")
    if not found.is_floating_point():
        raise ConfigError(
            f"the loss is an integer ({str(found.dtype).removeprefix('torch.')}), which has no gradient: compute it "
            "from the model's outputs by differentiable operations",
            field="loss_fn",
        )
    if torch.is_grad_enabled() and not found.requires_grad:
        raise ConfigError(
            "the loss has no gradient: it was computed without the model's parameters, from detached tensors or under "
            "torch.no_grad",
            field="loss_fn",
        )
    return found.reshape(())


def count_of_labels(arguments: dict[str, Any]) -> Number | None:
    """Over what a loss function with these arguments averages: its labels, or the sum of their weights.

    None where targets are probabilities: then it averages over samples.
    """
    target, weight = arguments["target"], arguments.get("weight")
    if target.is_floating_point():
        return None
    counted = target != arguments["ignore_index"]
    if weight is not None:
        total = torch.where(counted, weight[torch.where(counted, target, 0)], 0).sum(dtype=torch.float64)
    else:
        total = counted.sum(dtype=torch.float64)
    return _number(total)


def count_of_models_labels(model: torch.nn.Module, loss: Any, outputs: Any, batch: Any) -> Number | None:
    """The number of labels (or masked patches) over which a model of the transformers library averaged ``loss``.

    None unless it is ``outputs.loss`` of a model with a label per token or patch; a causal language model's first label
    of a sequence has no prediction. For a model that is split over ranks, whose loss is no loss function of torch.
    """
    theirs = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    name = type(getattr(model, "_orig_mod", model)).__name__
    is_per_token = any(part in name for part in _PER_TOKEN)
    return expected_labels(model, batch) if theirs is loss and is_per_token else None


def expected_labels(model: torch.nn.Module, batch: Any) -> Number | None:
    """The number of labels of ``batch`` that are not ignored: integers under "labels", or last in a tuple; of a masked
    image model the number of masked patches.

    None where there are none. A causal language model's first label of a sequence has no prediction.
    """
    is_mapping = isinstance(batch, Mapping)
    name = type(getattr(model, "_orig_mod", model)).__name__
    if is_mapping and "MaskedImageModeling" in name and "bool_masked_pos" in batch:
        return _number(batch["bool_masked_pos"].sum(dtype=torch.float64))
    labels = batch.get("labels") if is_mapping else batch[-1] if isinstance(batch, tuple | list) else None
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.is_complex():
        return None
    if is_mapping and labels.dim() > 1 and any(part in name for part in _CAUSAL):
        labels = labels[..., 1:]
    return _number((labels != -100).sum(dtype=torch.float64))


def _number(total: torch.Tensor) -> Number:
    """A scalar on the host; on another device as it is, as the host need not wait."""
    return float(total) if total.device.type == "cpu" else total.detach()


def _ignores_some(arguments: dict[str, Any]) -> bool:
    target = arguments["target"]
    return not target.is_floating_point() and bool((target == arguments["ignore_index"]).any())


def _is_contrastive(arguments: dict[str, Any]) -> bool:
    """Whether each sample's label is its own number among the samples, and the scores are products of samples: a loss
    such as InfoNCE."""
    scores, target = arguments["input"], arguments["target"]
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1] or scores.shape[0] < 2 or target.is_floating_point():
        return False
    return bool((target == torch.arange(len(target), device=target.device)).all()) and compares_samples(scores)
