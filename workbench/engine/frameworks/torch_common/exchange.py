"""How the ranks of a torch run exchange a few numbers, also between hosts: over gloo, around rank 0.

For sums each rank asks rank 0, and rank 0 answers all.

An all-reduce of a few bytes passes several messages around a ring of ranks. This exchange takes one message per rank in
each direction and is faster (tests/benchmarks/agreement.py). Rank 0 can attach two integers to its reply. The terms are
added in the order of ranks, as in ``shared_slots``, so that both give bit-identical sums.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from workbench.engine.agree.exchange import Alone, Exchange

_TO_RANK_0, _FROM_RANK_0 = 1, 2  # tags


def all_reduce_uncounted(
    tensor: torch.Tensor, operation: Any = dist.ReduceOp.SUM, *, group: dist.ProcessGroup | None = None
) -> None:
    """Reduce ``tensor`` over the ranks of ``group`` (default: all), in place. The group itself is asked, so that nobody
    who watches ``torch.distributed`` counts it among the collectives of the training."""
    options = dist.AllreduceOptions()
    options.reduceOp = operation
    whole: Any = dist.group.WORLD
    (whole if group is None else group).allreduce([tensor], options).wait()


def exchange_of(rank: int, ranks: int) -> Exchange:
    """The exchange of this rank with the others of torch's default process group. Collective."""
    return Alone() if ranks == 1 else GlooExchange(dist.new_group(backend="gloo"), rank, ranks)


class GlooExchange:
    """Star-shaped exchange between rank 0 and all other ranks, over a gloo ``group`` of all ranks.

    Messages go directly through the group object, as the look-ups of ``torch.distributed.send`` take longer than such a
    message.
    """

    def __init__(self, group: dist.ProcessGroup, rank: int, ranks: int) -> None:
        self.rank = rank
        self.ranks = ranks
        self._group = group
        self._others = range(1, ranks)

    def from_rank_0(self, data: bytes) -> bytes:
        """As ``Exchange.from_rank_0``."""
        tensor = torch.tensor(list(data), dtype=torch.uint8)
        dist.broadcast(tensor, src=0, group=self._group)
        return bytes(tensor.tolist())

    def gathered(self, value: Any) -> list[Any]:
        """As ``Exchange.gathered``."""
        found: list[Any] = [None] * self.ranks
        dist.all_gather_object(found, value, group=self._group)
        return found

    def summed(self, first: float, second: float, told: tuple[int, int]) -> tuple[float, float, int, int]:
        """Return the sums of ``first`` and ``second`` over all ranks, and the two integers of rank 0's ``told``.

        The integers must be below 2**53, as they are sent as float64. Collective; waits for all ranks.
        """
        numbers = self._ask(first, second) if self.rank else self._answer(first, second, told)
        return numbers[0], numbers[1], int(numbers[2]), int(numbers[3])

    def _ask(self, first: float, second: float) -> list[float]:
        answer = torch.empty(4, dtype=torch.float64)
        answering = self._group.recv([answer], 0, _FROM_RANK_0)
        self._group.send([torch.tensor([first, second], dtype=torch.float64)], 0, _TO_RANK_0).wait()
        answering.wait()
        found: list[float] = answer.tolist()
        return found

    def _answer(self, first: float, second: float, told: tuple[int, int]) -> list[float]:
        asked = [torch.empty(2, dtype=torch.float64) for _ in self._others]
        for work in [
            self._group.recv([part], rank, _TO_RANK_0) for rank, part in zip(self._others, asked, strict=True)
        ]:
            work.wait()
        for part in asked:
            first, second = first + float(part[0]), second + float(part[1])
        answer = torch.tensor([first, second, *told], dtype=torch.float64)
        for work in [self._group.send([answer], rank, _FROM_RANK_0) for rank in self._others]:
            work.wait()
        return [first, second, *told]
