"""What an optimizer keeps beside the weights, whatever it calls it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from workbench.engine.base.parts import WeightPart
from workbench.engine.frameworks.torch_common.parameters import RankParameter

#: names under which torch's and Colossal-AI's optimizers keep first and second moments
_FIRST = ("exp_avg", "momentum_buffer")
_SECOND = ("exp_avg_sq", "square_avg", "sum")

Moments = tuple[torch.Tensor | None, torch.Tensor | None]


def moments_of(optimizer: Any, weight: torch.Tensor) -> Moments:
    """First and second moment of a weight that ``optimizer`` (a torch optimizer) updates; None for what it has not."""
    state = optimizer.state.get(weight, {})
    return _named(state, _FIRST, weight), _named(state, _SECOND, weight)


def weight_part(item: RankParameter, weight: torch.Tensor, optimizer: Any) -> WeightPart:
    """The weights and moments of ``item`` that count; ``weight`` is what ``optimizer`` updates for it."""
    first, second = [None if moment is None else item.real(moment) for moment in moments_of(optimizer, weight)]
    return WeightPart(item.layer, item.real(weight.detach()), item.sharded, (first, second))


def _named(state: dict[str, Any], names: tuple[str, ...], weight: torch.Tensor) -> torch.Tensor | None:
    for name in names:
        found = state.get(name)
        if isinstance(found, torch.Tensor) and found.numel() == weight.numel():
            return found
    return None


def tensors_in(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    """The tensors among values, also those in lists and dicts."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from tensors_in(value.values())
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
