"""One more forward and backward pass over a batch, which leaves weights, gradients and buffers as they were."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from workbench.engine.base.workload import Batch

if TYPE_CHECKING:
    from workbench.engine.frameworks.colossal.strategy import ColossalStrategy


def rerun(
    strategy: ColossalStrategy, pieces: Sequence[Batch], seen: Callable[[torch.Tensor], None]
) -> torch.Tensor | None:
    """As ``Strategy.rerun``. Collective over the ranks of a replica.

    The user's own module is called, not the framework's wrapper, and gradients are asked for with
    ``torch.autograd.grad``: nothing accumulates, so nothing is reduced. A pipeline's schedule can only accumulate:
    there the gradients are put aside meanwhile.
    """
    plan = strategy.plan
    losses: list[torch.Tensor] = []
    with torch.enable_grad(), _as_they_were(plan.module), _inputs_cast(plan):
        for piece in pieces:
            if strategy.mesh.pp > 1:
                loss = strategy.rerun_pipeline(piece, len(pieces), seen)
                if loss is not None:
                    losses.append(loss)
                continue
            loss = strategy.loss_of(plan.module, piece) / len(pieces)
            seen(loss)
            losses.append(loss.detach().float())
            parameters = [p for p in plan.module.parameters() if p.requires_grad]
            torch.autograd.grad(loss * plan.loss_scale(), parameters, allow_unused=True)
    return torch.stack(losses).sum() if losses else None


@contextmanager
def _as_they_were(module: torch.nn.Module) -> Iterator[None]:
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    parameters = list(module.parameters())
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        with _uncompiled():
            yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled modules run eagerly: hooks that are set after compiling are not called."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # torch >= 2.6
    was_compiled = "torch._dynamo" in sys.modules
    return set_stance("force_eager") if set_stance is not None and was_compiled else nullcontext()


@contextmanager
def _inputs_cast(plan: Any) -> Iterator[None]:
    """What the framework's wrapper does to its inputs in mixed precision."""
    if plan.mesh.pp > 1 or getattr(plan.model, "convert_fn", None) is None:
        yield
        return
    handle = plan.module.register_forward_pre_hook(
        lambda module, args, kwargs: (plan.cast(args), plan.cast(kwargs)), with_kwargs=True, prepend=True
    )
    try:
        yield
    finally:
        handle.remove()
