"""Gradients in the buffers of Megatron's DDP: ``main_grad`` of each parameter, complete on this rank and then reduced.

Reduction runs in groups of buckets, each begun by ``start_grad_sync``: after backward, or while it runs
(``overlap_grad_reduce``). With the distributed optimizer it is a reduce-scatter: afterwards this rank's part of each
bucket holds the reduced gradient, and the rest of ``main_grad`` what it was (megatron-core 0.16.1,
distributed/param_and_grad_buffer.py). This module does not import Megatron.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


class GradientBuffers:
    """The buffers of ``ddp``, Megatron's ``DistributedDataParallel``."""

    def __init__(self, ddp: Any) -> None:
        self._groups = [*ddp.bucket_groups, *ddp.expert_parallel_bucket_groups]
        self._buffers = [*ddp.buffers, *ddp.expert_parallel_buffers]
        #: whether the ranks have different parts of the reduced gradient
        self.is_split = bool(ddp.ddp_config.use_distributed_optimizer) and any(
            buffer.data_parallel_world_size > 1 for buffer in self._buffers
        )
        self._own: dict[int, slice] = {}

    @staticmethod
    def local(parameter: Any) -> torch.Tensor | None:
        """The gradient of a parameter as backward passes have added it up, in its shape; None where there is none."""
        found: torch.Tensor | None = getattr(parameter, "main_grad", None)
        return found

    def reduced(self, parameter: Any) -> torch.Tensor | None:
        """The reduced gradient, in the parameter's shape; this rank's part of it, flat, where ranks have parts."""
        gradient = self.local(parameter)
        return self.own(parameter, gradient) if self.is_split and gradient is not None else gradient

    def own(self, parameter: Any, like: torch.Tensor) -> torch.Tensor:
        """The elements of ``like``, which is shaped as the parameter, whose reduced gradient this rank has: flat."""
        if id(parameter) not in self._own:
            self._own[id(parameter)] = self._slice_of(parameter)
        return like.reshape(-1)[self._own[id(parameter)]]

    def _slice_of(self, parameter: Any) -> slice:
        buffer = next(each for each in self._buffers if parameter in each.param_index_map)
        start, end, number = buffer.param_index_map[parameter]
        bucket = buffer.buckets[number]
        size = bucket.grad_data.numel() // buffer.data_parallel_world_size
        first = bucket.offset + size * buffer.data_parallel_group.rank()
        return slice(max(start, first) - start, max(start, first, min(end, first + size)) - start)

    @contextmanager
    def before_reduction(self, show: Callable[[Collection[torch.Tensor]], None]) -> Iterator[None]:
        """While entered, ``show`` is called with the parameters of each group before their gradients are reduced."""

        def started(group: Any, start: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            show(group.params)
            return start(*args, **kwargs)

        for group in self._groups:
            group.start_grad_sync = partial(started, group, group.start_grad_sync)
        try:
            yield
        finally:
            for group in self._groups:
                del group.start_grad_sync
