"""Local gradients under FSDP2: whole, complete on this rank and not reduced yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp._fully_shard import _fsdp_param_group

from workbench.engine.base.parts import BatchObserver, GradientPart
from workbench.engine.frameworks.torch_common.parameters import RankParameter


@contextmanager
def before_reduce_scatter(
    items: Mapping[int, RankParameter],
    part_of: Callable[[RankParameter, torch.Tensor], GradientPart],
    show: BatchObserver,
) -> Iterator[None]:
    """``foreach_reduce`` gets the gradients that are reduced together, with those of earlier pieces added up, and only
    copies them: whoever keeps a reference keeps the local gradient. ``items``: those wanted, by the parameter's id."""
    reduce = _fsdp_param_group.foreach_reduce

    def look_and_reduce(parameters: list[Any], gradients: list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        pairs = zip(parameters, gradients, strict=True)
        found = [(items.get(id(parameter.sharded_param)), gradient) for parameter, gradient in pairs]
        parts = [part_of(item, gradient) for item, gradient in found if item is not None]
        if parts:
            show(parts)
        return reduce(parameters, gradients, *args, **kwargs)

    _fsdp_param_group.foreach_reduce = look_and_reduce  # type: ignore[assignment]
    try:
        yield
    finally:
        _fsdp_param_group.foreach_reduce = reduce
