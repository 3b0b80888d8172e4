"""When backward has computed the gradients and goes on to wait for their reduction."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: called with a phase and the number of the micro-batch (-1: there is one only)
Mark = Callable[[str, int], object]


def mark_what_follows(loss: torch.Tensor, mark: Mark, number: int) -> None:
    """Tell ``mark`` when the gradients of ``loss`` are computed, and backward goes on to wait for their reduction.

    A callback that is queued when backward begins runs after all gradients and before the one in which DDP waits.
    """
    if not loss.requires_grad:
        return  # backward is about to say so

    def computed() -> None:
        mark("communication", number)

    def begins(_: torch.Tensor) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(computed)

    loss.register_hook(begins)
