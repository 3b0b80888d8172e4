"""One order of samples for all ranks: rank 0 draws it, and the others receive it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workbench.engine.agree.exchange import Exchange


class SharedOrder:
    """A sampler or batch sampler whose indices rank 0 draws, one item at a time. All ranks iterate over it together."""

    def __init__(self, order: Any, exchange: Exchange) -> None:
        self._order = order
        self._exchange = exchange

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Any]:
        own = iter(self._order) if self._exchange.rank == 0 else iter(())
        while item := self._exchange.gathered(next(((drawn,) for drawn in own), ()))[0]:
            yield item[0]
