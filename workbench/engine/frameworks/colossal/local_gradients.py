"""The moment at which a plan's gradients are complete on this rank and not reduced yet: one way in per framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from workbench.engine.base.strategy import BatchObserver, GradientPart
from workbench.engine.frameworks.colossal.parameters import HeldParameter

#: the gradients of these parameters, as they are now
PartsOf = Callable[[Sequence[HeldParameter]], list[GradientPart]]


@contextmanager
def before_ddp_reduces(
    items: Sequence[HeldParameter], parts_of: PartsOf, show: BatchObserver, *, keep: bool, is_last: Callable[[], bool]
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
                part.source.parameter.grad = None

    def first(parameter: torch.Tensor) -> None:
        nonlocal queued
        if not queued:
            queued = True
            torch.autograd.Variable._execution_engine.queue_callback(look)

    handles = [item.parameter.register_post_accumulate_grad_hook(first) for item in items]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def before_buckets(
    stores: Sequence[Any],
    items: Sequence[HeldParameter],
    parts_of: PartsOf,
    show: BatchObserver,
    is_last_piece: Callable[[], bool],
) -> Iterator[None]:
    """Low-level ZeRO reduces a copy that it makes of a bucket's ``p.grad``: whoever keeps a reference to these keeps
    the local gradients. Where each piece of an accumulated batch is reduced, those of all pieces are added up."""
    by_id = {id(item.parameter): item for item in items}
    earlier: dict[int, GradientPart] = {}

    def look(parts: Sequence[GradientPart]) -> None:
        whole = []
        for part in parts:
            key = id(part.source.parameter)
            before = earlier.pop(key, None)
            summed = part if before is None else replace(part, tensor=before.tensor.add_(part.tensor))
            if is_last_piece():
                whole.append(summed)
            else:
                earlier[key] = summed if before is not None else replace(part, tensor=part.tensor.clone())
        if whole:
            show(whole)

    for store in stores:

        def build(store: Any = store, build: Callable[[], None] = store.build_grad_in_bucket) -> None:
            look(parts_of([by_id[id(parameter)] for parameter in store._param_list if id(parameter) in by_id]))
            build()

        store.build_grad_in_bucket = build
    try:
        yield
        if earlier:  # no part of the last piece
            show(list(earlier.values()))
    finally:
        for store in stores:
            del store.build_grad_in_bucket  # the class's own again


@contextmanager
def before_pipeline_sync(
    model: Any, items: Sequence[HeldParameter], parts_of: PartsOf, show: BatchObserver, *, keep: bool
) -> Iterator[None]:
    """A pipeline reduces after all micro-batches, tied parameters across stages first, then across replicas, in place:
    there a local gradient is kept by a copy."""
    sync = model.sync_dp_grads

    def look_and_sync() -> None:
        parts = parts_of(items)
        show(parts)
        for part in parts if keep else ():
            part.source.parameter.grad = part.source.parameter.grad.clone()
        sync()

    model.sync_dp_grads = look_and_sync
    try:
        yield
    finally:
        del model.sync_dp_grads
