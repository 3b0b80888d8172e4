"""What a person should know about the average of a loss: where it is not that of one process."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch

from workbench.engine.frameworks.torch_common.losses.calls import LossCall, Recorded, calls_by_node
from workbench.engine.frameworks.torch_common.losses.form import (
    Part,
    chosen_elements,
    factors_of,
    is_over_samples,
    parts_of_form,
    weights_of_sum,
)
from workbench.engine.frameworks.torch_common.losses.graph_nodes import shape_of, sizes_of
from workbench.engine.frameworks.torch_common.losses.joined_samples import (
    compares_samples,
    holds_comparison,
    joins_samples,
)

CONTRASTIVE = (
    "the loss compares the samples of a batch with each other: each rank compares those of its own share only, so the "
    "loss is not that of one process with the whole batch"
)
STATISTICS = (
    "the loss is made of a statistic over the samples of a batch, such as the deviation of each feature: each rank and "
    "gradient accumulation step takes it over its own samples, so the loss is not that of one process with the whole "
    "batch"
)
UNKNOWN_COUNT = (
    "the loss is made of an average over labels that are not ignored or elements that are chosen, and something else: "
    "each rank's loss counts by its samples. Return (loss_sum, count) from loss_fn if it is to count by labels"
)
OF_AVERAGES = (
    "the loss is a root, a power or a quotient of averages over the batch: each rank and gradient accumulation step "
    "computes it for its own samples, so the loss is not that of one process with the whole batch"
)
FACTOR = (
    "the loss has a factor that differs between pieces of the batch, so it depends on their samples: it is taken for a "
    "constant, and the loss is not that of one process with the whole batch. Return (loss_sum, count) from loss_fn if "
    "the factor is to make an average"
)
FACTOR_OF_SIZE = (
    "the loss has a factor that is the number of samples, or of chosen elements, that a rank or gradient accumulation "
    "step holds: it is taken for a constant. If it is computed from the batch, such as len(x), the loss is not that of "
    "one process with the whole batch: use a sum in place of a mean, or spec.batch_size in place of len(x)"
)
SUM_OF_SAMPLES = (
    "the loss adds up as many averages, made in one line, as a rank or gradient accumulation step has samples: if each "
    "is of one sample, the loss is a sum over the batch, which is averaged over ranks and gradient accumulation steps. "
    "Return (loss_sum, count) from loss_fn for a mean over the whole batch, or compute the losses of all samples at "
    "once and return their sum()"
)
NORMALISED_WEIGHTS = (
    "the loss is a mean in which samples have weights whose mean is 1: if these are divided by the mean of a batch, "
    "each rank and gradient accumulation step does so with its own, and the loss is not that of one process with the "
    "whole batch. Divide the sum of the weighted losses by the sum of the weights"
)
MIXED_TERMS = (
    "ranks or gradient accumulation steps hold different averages, such as one over labels and one over samples: "
    "each counts by what it averages over, and the loss is not that of one process with the whole batch. Return "
    "(loss_sum, count) from loss_fn"
)
UNNAMED_TERMS = (
    "the loss adds up averages in a loop, and ranks hold different numbers of them: which belong together is told by "
    "their order alone, so the loss may not be that of one process. Let the loop have a number or a name of each, such "
    "as for i, ... in enumerate(...)"
)
TOO_MANY_TERMS = (
    "the loss is made of more averages over chosen elements or labels that are not ignored than are weighted by "
    "themselves: the others count by samples. Return (loss_sum, count) from loss_fn if they are to count by labels"
)
ENDS_IN_QUOTIENT = (
    "the loss is a sum divided by a number that is neither its number of samples nor the sum of its weights: it is "
    "taken for an average over that number. Multiply by 1/number if the number is a constant"
)
ENDS_IN_SUM = (
    "the loss is a sum over the batch, and something else: it is averaged over ranks and gradient accumulation steps. "
    "Return (loss_sum, count) from loss_fn for a mean over the whole batch"
)


def tell_of_average(
    loss: torch.Tensor,
    calls: Sequence[LossCall],
    tell: Callable[[str, str], object],
    *,
    samples: int,
    is_call: bool,
    is_known: bool,
    counted: Collection[Any] = (),
    ranks_samples: bool = False,
) -> None:
    """Call ``tell(name, text)`` for what is to be known of ``loss``, which is of ``samples`` samples.

    ``calls``: those of torch's loss functions that it made. ``is_call``: its result is the loss, or its count is
    otherwise known. ``is_known``: over what the loss is a mean or a sum is known. ``counted``: nodes of the terms that
    count by themselves. ``ranks_samples``: samples were put into an order by a number that each has.
    """
    means = [call for call in calls if call.averages_over_labels]
    is_contrastive = any(_is_contrastive(call.arguments) for call in means)
    if is_contrastive or holds_comparison(loss, samples):
        tell("contrastive_loss", CONTRASTIVE)
    elif not is_known and any(call.ignores_some for call in means if call.node not in counted):
        tell("loss_by_samples", UNKNOWN_COUNT)
    said = is_contrastive
    if not is_call:
        for name, text in _remarks(loss, calls, samples, is_known, counted):
            tell(name, text)
            said = True
    if not said and (ranks_samples or joins_samples(loss, samples)):
        tell("batch_statistics", STATISTICS)


def _remarks(
    loss: torch.Tensor, calls: Sequence[LossCall], samples: int, is_whole_known: bool, counted: Collection[Any]
) -> Iterable[tuple[str, str]]:
    """What the terms say that a loss is a linear combination of."""
    by_node = calls_by_node(calls)
    for part in parts_of_form(loss, by_node):
        is_known = is_whole_known or part.node in counted
        call = by_node.get(part.node)
        if part.kind == "curved":
            yield "loss_of_averages", OF_AVERAGES
        elif part.kind == "sum" or (call is not None and call.reduction == "sum"):
            if part.divisor is None:
                if not is_known and (call is not None or is_over_samples(part.node, samples)):
                    yield "loss_is_a_sum", ENDS_IN_SUM
            elif call is None and not _is_number_of_samples(part.node, float(part.divisor)):
                if not _is_weighted(part.node, float(part.divisor)):
                    yield "loss_is_a_sum", ENDS_IN_QUOTIENT
                elif not is_known:
                    yield "loss_by_samples", UNKNOWN_COUNT
            elif call is None and not is_known and chosen_elements(part.node) is not None:
                yield "loss_by_samples", UNKNOWN_COUNT
        elif not is_known and _is_of_chosen(part, call, samples):
            yield "loss_by_samples", UNKNOWN_COUNT


def has_factor_of_size(loss: torch.Tensor, recorded: Recorded, samples: int) -> bool:
    """Whether a term of ``loss`` is multiplied by a number that its ``samples`` samples, or what it chose of them, may
    have given: the number is theirs, and the functions that made the term ask for one."""
    by_node = calls_by_node(recorded.calls)
    lines = _lines(recorded)
    for part in parts_of_form(loss, by_node):
        call, site = by_node.get(part.node), recorded.sites.get(part.node)
        if site is None or not site.asks_count or lines[site.line] == samples:  # the last: one of each sample
            continue
        is_sum = part.kind == "sum" or (call is not None and call.reduction == "sum")
        chosen = call.count() if call is not None else chosen_elements(part.node)
        is_over_all = call is not None and (chosen is None or chosen >= samples)
        is_over_all = is_over_all or (call is None and math.prod(shape_of(part.node)) >= samples)
        sizes = {float(samples)} if site.asks_size and is_over_all else set()
        if chosen is not None and chosen > 1 and chosen != samples:
            sizes.add(float(chosen))
        if any(factor in sizes or 1 / factor in sizes for factor in factors_of(part, without_divisor=is_sum)):
            return True
    return False


def _lines(recorded: Recorded) -> collections.Counter[int]:
    """How many results each line made."""
    return collections.Counter(site.line for site in recorded.sites.values())


def adds_up_samples(loss: torch.Tensor, recorded: Recorded, samples: int) -> bool:
    """Whether one line made as many averages as there are ``samples``, which are added up and not divided by that."""
    lines = _lines(recorded)
    if samples < 2 or samples not in lines.values():
        return False
    parts = [part for part in parts_of_form(loss, calls_by_node(recorded.calls)) if part.kind != "weights"]
    scales = [float(part.scale) for part in parts if part.scale is not None]
    return len(parts) > 1 and not any(math.isclose(scale * samples, 1.0, rel_tol=1e-6) for scale in scales)


def has_normalised_weights(loss: torch.Tensor, recorded: Recorded) -> bool:
    """Whether a mean holds its elements by different weights whose mean is 1: they were divided by it."""
    for part in parts_of_form(loss, calls_by_node(recorded.calls)):
        weights = weights_of_sum(part.node) if part.kind == "mean" else None
        if weights is not None and weights.is_floating_point() and weights.numel() > 1:
            mean = float(weights.mean(dtype=torch.float64))
            if math.isclose(mean, 1.0, rel_tol=1e-5) and bool((weights != weights.flatten()[0]).any()):
                return True
    return False


def _is_of_chosen(part: Part, call: LossCall | None, samples: int) -> bool:
    """Whether a mean is over elements of which the cell, or a label to be ignored, leaves out some."""
    if call is not None:
        return bool(samples and (call.count() or 0) % samples)
    return part.kind == "mean" and chosen_elements(part.node) is not None


def _is_number_of_samples(node: Any, divisor: float) -> bool:
    """Whether a sum is divided by a number of samples that its elements may have: their length along dim 0, along dims
    0 and 1, and so on."""
    return divisor in sizes_of(node) or chosen_elements(node) == 0


def _is_weighted(node: Any, divisor: float) -> bool:
    """Whether a sum is divided by the sum of its weights, or by that of a mask."""
    weights = weights_of_sum(node)
    if weights is None:
        return False
    totals = [float(weights.sum(dtype=torch.float64))]
    if weights.dim() <= len(shape_of(node)):
        totals.append(float(weights.expand(shape_of(node)).sum(dtype=torch.float64)))
    return not any(totals) or any(math.isclose(divisor, total, rel_tol=1e-4) for total in totals)


def _is_contrastive(arguments: dict[str, Any]) -> bool:
    """Whether each sample's label is its own number among the samples, and the scores are products of samples: a loss
    such as InfoNCE."""
    scores, target = arguments["input"], arguments["target"]
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1] or scores.shape[0] < 2 or target.is_floating_point():
        return False
    return bool((target == torch.arange(len(target), device=target.device)).all()) and compares_samples(scores)
