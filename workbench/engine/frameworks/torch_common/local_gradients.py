"""Local gradients under torch's DDP: complete on this rank and not reduced yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from workbench.engine.base.parts import BatchObserver, GradientPart
from workbench.engine.frameworks.torch_common.parameters import RankParameter

#: the gradients of these parameters, as they are now
PartsOf = Callable[[Sequence[RankParameter]], list[GradientPart]]


@contextmanager
def before_ddp_reduces(
    items: Sequence[RankParameter], parts_of: PartsOf, show: BatchObserver, *, keep: bool, is_last: Callable[[], bool]
) -> Iterator[None]:
    """Under torch's DDP every ``p.grad`` is still local in a callback queued by the first gradient of a backward pass:
    DDP copies the reduced ones there in a callback of its own, which runs later. Where ``p.grad`` is None by then, DDP
    makes a tensor for it: so a local gradient is kept by taking it away, without a copy."""
    queued = False

    def look() -> None:
        nonlocal queued
        queued = False
        if is_last():
            parts = parts_of(items)
            show(parts)
            for part in parts if keep else ():
                if not part.source.parameter.grad.is_sparse:  # what was shown of it is a copy
                    part.source.parameter.grad = None

    def first(parameter: torch.Tensor) -> None:
        nonlocal queued
        if not queued:
            queued = True
            torch.autograd.Variable._execution_engine.queue_callback(look)

    trained = [item.parameter for item in items if item.parameter.requires_grad]  # a cell may freeze some of them
    handles = [parameter.register_post_accumulate_grad_hook(first) for parameter in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
