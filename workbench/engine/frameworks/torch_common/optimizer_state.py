"""What an optimizer keeps beside the weights, whatever it calls it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
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


def cut_state(
    state: Mapping[str, Any], parameter: torch.Tensor, cut: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    """What an optimizer keeps for ``parameter`` as it keeps it for a part of that: tensors of its shape, ``cut``."""
    return {
        name: cut(value) if name != "step" and getattr(value, "shape", None) == parameter.shape else value
        for name, value in state.items()
    }


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


#: lengths of the dims of a tiny parameter, so that those of its state tell which dims they are
LENGTHS = (5, 7, 11, 13, 17, 19)


def state_names(optimizer: torch.optim.Optimizer) -> set[str]:
    """Names of what ``optimizer`` keeps for the parameters of its first group that holds any, such as "exp_avg"."""
    group = next((group for group in optimizer.param_groups if group["params"]), None)
    if group is None:
        return set()
    first = group["params"][0]
    state = updated_once(optimizer, group, first.dim(), first.dtype)
    return {name for name, value in state.items() if isinstance(value, torch.Tensor)}


def updated_once(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], dims: int, dtype: torch.dtype
) -> dict[str, Any]:
    """What the optimizer keeps of a tiny parameter after one update."""
    found = next((parameter.device for parameter in group["params"]), torch.device("cpu"))
    device = torch.device("cpu") if found.type == "meta" else found
    parameter = torch.nn.Parameter(torch.ones(LENGTHS[:dims], dtype=dtype, device=device))
    parameter.grad = torch.ones_like(parameter)
    probe = copy.copy(optimizer)
    probe.state = defaultdict(dict)
    probe.param_groups = [{**group, "params": [parameter]}]
    type(optimizer).step(probe)  # a scheduler has put another ``step`` on the optimizer
    return dict(probe.state.get(parameter, {}))
