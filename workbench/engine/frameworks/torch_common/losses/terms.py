"""What a loss is an average over: samples, labels that count, elements that are chosen, or nothing (a sum).

torch's loss functions say it of their results (``calls``), the autograd graph of means and sums of the cell's own
(``form``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from workbench.engine.frameworks.torch_common.losses.calls import (
    LossCall,
    Number,
    Recorded,
    calls_by_node,
    number_of,
    recorded_calls,
)
from workbench.engine.frameworks.torch_common.losses.form import (
    Part,
    chosen_elements,
    is_over_samples,
    parts_of_form,
    weights_of_sum,
)
from workbench.engine.frameworks.torch_common.losses.graph_nodes import sizes_of
from workbench.engine.frameworks.torch_common.losses.remarks import (
    FACTOR_OF_SIZE,
    NORMALISED_WEIGHTS,
    SUM_OF_SAMPLES,
    adds_up_samples,
    has_factor_of_size,
    has_normalised_weights,
    tell_of_average,
)
from workbench.errors import ConfigError

#: the most terms of a run's losses that count by themselves
MOST_PARTS = 8
#: the site of a mean of which it is not known where it is made; 0 is no site
UNKNOWN_SITE = 1


@dataclass(frozen=True, slots=True)
class TermPart:
    """A term of a loss: ``scale`` times ``value``, a scalar, which is a mean over ``count``; None: a sum. ``site``: a
    number for where it is made."""

    value: torch.Tensor
    scale: torch.Tensor | float
    count: Number | None
    site: int


@dataclass(frozen=True, slots=True)
class Factor:
    """The sum of the numbers by which a loss holds its means, and how many means these are."""

    total: float
    terms: int


@dataclass(frozen=True, slots=True)
class Division:
    """``of_several``: other pieces hold other samples of the batch. ``by_terms``: each term of a loss is weighted by
    itself."""

    of_several: bool = False
    by_terms: bool = False


WHOLE = Division()


@dataclass(frozen=True, slots=True)
class LossTerm:
    """The loss of one piece of a batch.

    ``value``: a scalar. ``count``: the number (or the sum of weights) of what it is about; None: its samples.
    ``form``: "mean" over ``count``, "total" over ``count`` (to be divided by that of all pieces), or "sum": of the
    whole batch, to be divided by nothing. ``site``: a number for where a mean is made. ``numerator``: what is divided
    by the count, where the cell does that, so perhaps by 0. ``parts``: the terms that are added up in it, of those that
    count otherwise than by samples. ``factor``: by what numbers the loss holds its means; None where nobody asks.
    ``repeated``: the sites of its parts that are told apart by their order alone.
    """

    value: torch.Tensor
    count: Number | None = None
    form: str = "mean"
    site: int = UNKNOWN_SITE
    numerator: torch.Tensor | None = None
    parts: tuple[TermPart, ...] = ()
    factor: Factor | None = None
    repeated: tuple[int, ...] = ()


def loss_term(
    compute: Callable[[], Any],
    tell: Callable[[str, str], object] | None = None,
    count_of: Callable[[torch.Tensor], Number | None] = lambda loss: None,
    *,
    samples: int,
    division: Division = WHOLE,
) -> LossTerm:
    """The loss of ``samples`` samples that ``compute`` returns: a scalar, or (sum, count).

    ``count_of(loss)`` is asked for the count of a mean that no loss function of torch returned.

    ``division``: how the batch is divided into pieces, of which this is one.

    ``tell(name, text)``, if given, learns what a person should know about the average; finding it out may wait for the
    device. Raises ``ConfigError`` for a result that is no loss.
    """
    with recorded_calls(fills=division.of_several and torch.is_grad_enabled()) as recorded:
        found = compute()
    calls = recorded.calls
    if isinstance(found, tuple):
        return _total(found, recorded)
    value = _unfilled(_scalar(found), found, recorded)
    call = next((call for call in reversed(calls) if call.result is found and call.stands), None)
    count = count_of(found) if call is None else None
    if call is not None:
        is_sum, site = call.reduction == "sum", recorded.sites[call.node].number
        term = LossTerm(value, form="sum") if is_sum else LossTerm(value, call.count(), site=site)
    elif count is not None or found.grad_fn is None:
        term = LossTerm(value, count)
    else:
        term = _term_of_graph(value, found, recorded, samples, division)
    if tell is not None:
        is_known = call is not None or term.count is not None or term.form == "sum"
        is_call = call is not None or count is not None
        counted = {part.value.grad_fn for part in term.parts}
        tell_of_average(
            found,
            calls,
            tell,
            samples=samples,
            is_call=is_call,
            is_known=is_known,
            counted=counted,
            ranks_samples=samples > 1 and samples in recorded.ranked,
        )
        if found.grad_fn is not None and count is None:
            term = replace(term, factor=_factor(found, calls))
            if division.of_several and has_factor_of_size(found, recorded, samples):
                tell("loss_factor", FACTOR_OF_SIZE)
            if division.of_several and adds_up_samples(found, recorded, samples):
                tell("loss_is_a_sum", SUM_OF_SAMPLES)
            if division.of_several and has_normalised_weights(found, recorded):
                tell("loss_weights", NORMALISED_WEIGHTS)
    return term


def _term_of_graph(
    value: torch.Tensor, loss: torch.Tensor, recorded: Recorded, samples: int, division: Division
) -> LossTerm:
    """The loss as its graph shows it: one mean, scaled, and perhaps a penalty on weights beside it; or sums alone; or
    several terms, where each is weighted by itself."""
    by_node = calls_by_node(recorded.calls)
    parts = list(parts_of_form(loss, by_node))
    terms = [part for part in parts if part.kind != "weights"]
    if len(terms) == 1 and not terms[0].is_added:
        count, call = _count_of_part(terms[0], by_node.get(terms[0].node)), by_node.get(terms[0].node)
        if count is not None:
            result = recorded.scalar(terms[0].node, call)
            numerator = result if terms[0].divisor is not None else None
            site = recorded.number_of_site(terms[0].node) or UNKNOWN_SITE
            return LossTerm(value, count, numerator=numerator, site=site, repeated=_repeated([site], recorded))
    if parts and all(_is_whole_sum(part, by_node.get(part.node), samples) for part in parts):
        return LossTerm(value, form="sum")
    if not division.by_terms:
        return LossTerm(value)
    found: dict[Any, TermPart] = {}
    for part in terms:
        call = by_node.get(part.node)
        result = recorded.scalar(part.node, call)
        is_sum = _is_whole_sum(part, call, samples)
        count = None if is_sum else _count_of_part(part, call)
        place = recorded.number_of_site(part.node)
        if result is not None and place is not None and part.scale is not None and (is_sum or count is not None):
            before = found[part.node].scale if part.node in found else 0.0
            found[part.node] = TermPart(result, part.scale + before, count, place)
    counted = tuple(found.values())[:MOST_PARTS]
    return LossTerm(value, parts=counted, repeated=_repeated([part.site for part in counted], recorded))


def _repeated(sites: Sequence[int], recorded: Recorded) -> tuple[int, ...]:
    return tuple(sorted(recorded.repeated.intersection(sites)))


def _unfilled(value: torch.Tensor, loss: torch.Tensor | None, recorded: Recorded) -> torch.Tensor:
    """``value``, but NaN where something was divided by 0 that is no average over what other pieces may hold. ``loss``:
    whose terms may be such averages."""
    if not recorded.divisions:
        return value
    by_node = calls_by_node(recorded.calls)
    parts = [] if loss is None else list(parts_of_form(loss, by_node))
    averages = {
        node for part in parts if _count_of_part(part, by_node.get(part.node)) is not None for node in part.products
    }
    for node, is_zero in recorded.divisions.items():
        if node not in averages:
            value = value + torch.where(torch.as_tensor(is_zero, device=value.device), math.nan, 0.0)
    return value


def _factor(loss: torch.Tensor, calls: Sequence[LossCall]) -> Factor:
    """By what the loss holds its means, and the weights of classes in them; sums that are divided by what they count
    hold no factor."""
    by_node = calls_by_node(calls)
    scales = []
    for part in parts_of_form(loss, by_node):
        call = by_node.get(part.node)
        if part.scale is None or part.kind not in ("mean", "call") or (call is not None and call.reduction == "sum"):
            continue
        is_normalised = part.divisor is not None and part.kind == "mean" and _weights_of_mean(part) is not None
        scale = float(part.scale * part.divisor if is_normalised and part.divisor is not None else part.scale)
        scales.append(scale * (1.0 if call is None else call.class_weights))
    return Factor(sum(scales), len(scales))


def _count_of_part(part: Part, call: LossCall | None) -> Number | None:
    """Over what a term averages, where pieces with as many samples may differ in it."""
    if call is not None and call.reduction != "sum":
        return call.count()
    if part.kind == "mean":
        total = _weights_of_mean(part)
        count = chosen_elements(part.node) if total is None else None
        return number_of(total) if total is not None else None if count is None else float(count)
    if part.divisor is None or (call is None and part.kind != "sum"):
        return None
    weights = None if call is not None else weights_of_sum(part.node)
    # infinite: it stands for 0, by which the cell divides (``Recorded.divisions``)
    divided_by = torch.where(part.divisor.isinf(), 0, part.divisor)
    if weights is not None:  # what it is divided by may be clamped, not to divide by 0, or be a number of samples
        sizes = [size for size in sizes_of(part.node) if size > 1]
        is_size = (torch.tensor(sizes, device=divided_by.device) == divided_by).any()
        return number_of(torch.where((weights != 0).any() | is_size, divided_by, 0))
    is_empty = call is None and chosen_elements(part.node) == 0
    return 0.0 if is_empty else number_of(divided_by)


def _weights_of_mean(part: Part) -> torch.Tensor | None:
    """The sum of the weights of a mean that is divided by their mean, such as ``(losses * mask).mean() / mask.mean()``;
    None: it is not."""
    weights = None if part.divisor is None else weights_of_sum(part.node)
    if weights is None or part.divisor is None:
        return None
    mean = weights.mean(dtype=torch.float64)
    divisor = part.divisor.double()
    is_equal = torch.isclose(mean, torch.where(divisor.isinf(), 0.0, divisor), rtol=1e-4, atol=0.0)
    return weights.sum(dtype=torch.float64) if bool(is_equal) else None


def _is_whole_sum(part: Part, call: LossCall | None, samples: int) -> bool:
    """Whether a term is a sum over the batch, divided by nothing, also not by weights that may be shares of 1."""
    if part.divisor is not None:
        return False
    if call is not None:
        return call.reduction == "sum"
    return part.kind == "sum" and weights_of_sum(part.node) is None and is_over_samples(part.node, samples)


_CAUSAL = ("CausalLM", "LMHead")
_PER_TOKEN = (*_CAUSAL, "MaskedLM", "TokenClassification", "ConditionalGeneration", "MaskedImageModeling")


def _total(found: tuple[Any, ...], recorded: Recorded) -> LossTerm:
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
    return LossTerm(_unfilled(_scalar(total), None, recorded), count, "total")


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
        return number_of(batch["bool_masked_pos"].sum(dtype=torch.float64))
    labels = batch.get("labels") if is_mapping else batch[-1] if isinstance(batch, tuple | list) else None
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.is_complex():
        return None
    if is_mapping and labels.dim() > 1 and any(part in name for part in _CAUSAL):
        labels = labels[..., 1:]
    return number_of((labels != -100).sum(dtype=torch.float64))
