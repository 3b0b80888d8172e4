"""Driving Colossal-AI's 1F1B schedule where it remembers too much.

The schedule caches the shapes of messages between stages, the batch size and the number of micro-batches. A batch of
other shapes, or an evaluation between two training steps, would meet a stale cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

_REMEMBERED = (
    "num_microbatches",
    "microbatch_size",
    "last_batch_size",
    "enable_metadata_cache",
    "send_tensor_metadata",
    "send_grad_metadata",
    "tensor_metadata_recv",
    "grad_metadata_recv",
)


def forget_shapes_if_new(schedule: Any, batch: Any) -> None:
    """Before a training step: when the shapes differ from those of the step before, drop what was cached of them.

    All stages see the same batch, so all of them decide the same.
    """
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
    if getattr(schedule, "_workbench_shapes", shapes) != shapes:
        _forget(schedule)
        schedule.microbatch_size = None
    schedule._workbench_shapes = shapes


def _forget(schedule: Any) -> None:
    schedule.last_batch_size = None
    schedule.send_tensor_metadata = schedule.send_grad_metadata = True
    schedule.tensor_metadata_recv = schedule.grad_metadata_recv = None


@contextmanager
def _own_memory(schedule: Any) -> Iterator[None]:
    before = {name: getattr(schedule, name) for name in _REMEMBERED}
    _forget(schedule)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(schedule, name, value)


def forward_only(schedule: Any, model: torch.nn.Module, batch: Any) -> Any:
    """Outputs for ``batch`` on the last stage, None on the others. Collective over the stages; call under no_grad.

    What the schedule returns has lost its scalars, the loss among them, so the outputs are taken where it computes one.
    """
    sample = next(leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor))
    seen: list[Any] = []

    def take(outputs: Any, micro_batch: Any) -> torch.Tensor:
        seen.append(outputs)
        return torch.zeros((), device=sample.device)

    with _own_memory(schedule):
        schedule.enable_metadata_cache = False
        schedule.microbatch_size = sample.shape[0]
        schedule.num_microbatches = 1
        schedule.forward_backward_step(model, iter([batch]), take)
    return seen[0] if seen else None
