"""Where low-level ZeRO and the pipeline have gradients that are complete on this rank and not reduced yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from workbench.engine.base.parts import BatchObserver, GradientPart
from workbench.engine.frameworks.torch_common.local_gradients import PartsOf
from workbench.engine.frameworks.torch_common.parameters import RankParameter


class SummedPieces:
    """Adds up the local gradients of the pieces of an accumulated batch, where each piece is reduced by itself, and
    shows them with the last piece."""

    def __init__(self, show: BatchObserver, is_last_piece: Callable[[], bool]) -> None:
        self._show = show
        self._is_last_piece = is_last_piece
        self._earlier: dict[int, GradientPart] = {}

    def take(self, parts: Sequence[GradientPart]) -> None:
        """Gradients of one piece, which may change afterwards unless it is the last."""
        whole = []
        for part in parts:
            key = id(part.source.parameter)
            before = self._earlier.pop(key, None)
            summed = part if before is None else replace(part, tensor=before.tensor.add_(part.tensor))
            if self._is_last_piece():
                whole.append(summed)
            else:
                self._earlier[key] = summed if before is not None else replace(part, tensor=part.tensor.clone())
        if whole:
            self._show(whole)

    def finish(self) -> None:
        """Show those that were no part of the last piece."""
        if self._earlier:
            self._show(list(self._earlier.values()))


@contextmanager
def before_buckets(
    stores: Sequence[Any],
    items: Sequence[RankParameter],
    parts_of: PartsOf,
    show: BatchObserver,
    is_last_piece: Callable[[], bool],
) -> Iterator[None]:
    """Low-level ZeRO reduces a copy that it makes of a bucket's ``p.grad``: whoever keeps a reference to these keeps
    the local gradients. Where each piece of an accumulated batch is reduced, those of all pieces are added up."""
    by_id = {id(item.parameter): item for item in items}
    pieces = SummedPieces(show, is_last_piece)
    for store in stores:

        def build(store: Any = store, build: Callable[[], None] = store.build_grad_in_bucket) -> None:
            pieces.take(parts_of([by_id[id(parameter)] for parameter in store._param_list if id(parameter) in by_id]))
            build()

        store.build_grad_in_bucket = build
    try:
        yield
        pieces.finish()
    finally:
        for store in stores:
            del store.build_grad_in_bucket  # the class's own again


@contextmanager
def before_pipeline_sync(
    model: Any, items: Sequence[RankParameter], parts_of: PartsOf, show: BatchObserver, *, keep: bool
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
