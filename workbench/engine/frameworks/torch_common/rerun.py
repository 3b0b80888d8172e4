"""One more forward and backward pass over a batch, which leaves weights, gradients and buffers as they were."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from workbench.engine.base.batch import Batch


def rerun(
    module: torch.nn.Module,
    pieces: Sequence[Batch],
    loss_of: Callable[[Batch], torch.Tensor],
    seen: Callable[[torch.Tensor], None],
    *,
    loss_scale: float = 1.0,
) -> torch.Tensor:
    """``Replayable.rerun`` of a model that is on this rank as a whole, or tensor-parallel: the loss of the share.

    ``loss_of``: what a piece adds to the loss of the share. It calls the user's own module, not the framework's
    wrapper, and gradients are asked for with ``torch.autograd.grad``: nothing accumulates, so nothing is reduced.
    """
    losses = []
    parameters = [p for p in module.parameters() if p.requires_grad]
    with undone(module):
        for piece in pieces:
            loss = loss_of(piece)
            seen(loss)
            losses.append(loss.detach().float())
            torch.autograd.grad(loss * loss_scale, parameters, allow_unused=True)
    return torch.stack(losses).sum()


@contextmanager
def undone(module: torch.nn.Module) -> Iterator[None]:
    """Forward and backward passes inside leave gradients and buffers as they were; compiled modules run eagerly, so
    that hooks which were set after compiling are called."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    parameters = list(module.parameters())
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        with torch.enable_grad(), _uncompiled():
            yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _uncompiled() -> AbstractContextManager[Any]:
    set_stance = getattr(torch.compiler, "set_stance", None)  # torch >= 2.6
    was_compiled = "torch._dynamo" in sys.modules
    return set_stance("force_eager") if set_stance is not None and was_compiled else nullcontext()
