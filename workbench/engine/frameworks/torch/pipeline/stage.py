"""One stage as torch's schedules drive it, telling what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage

from workbench.engine.frameworks.torch_common.phase_marks import Mark

#: what a stage puts out for a micro-batch: (stage, number of the micro-batch, what it received) -> hidden states, or
#: on the last stage the loss
Compute = Callable[[int, int, "torch.Tensor | None"], torch.Tensor]


class StageModule(torch.nn.Module):
    """Calls ``compute`` for a stage. ``held``: the parameters of the stage, whose gradients it computes."""

    def __init__(self, stage: int, held: Sequence[torch.nn.Parameter], compute: Compute) -> None:
        super().__init__()
        self._stage = stage
        self._held = held
        self._compute = compute

    def forward(self, *received: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """What the stage puts out. ``number``: of the micro-batch, in one element."""
        return self._compute(self._stage, int(number), received[0] if received else None)

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        """Those of the stage."""
        return iter(self._held)


class Marks:
    """Who is told what the stages of a rank do, and how many messages they wait for.

    Between its computations a rank waits for a message ("bubble": its own time is in it) or sends ("communication").
    ``first``: number of the next micro-batch 0 among those of the step.
    """

    def __init__(self) -> None:
        self.mark: Mark = lambda phase, number: None
        self.first = 0
        self.waiting = 0

    def begins(self, phase: str, number: int, *, received: bool) -> None:
        """A computation begins, with what was waited for if ``received``."""
        self.waiting -= received
        self.mark(phase, self.first + number)

    def ends(self, number: int) -> None:
        """It is over."""
        self.mark("bubble" if self.waiting else "communication", self.first + number)

    def waits(self, number: int) -> None:
        """A message is asked for."""
        self.waiting += 1
        self.mark("bubble", self.first + number)


class MarkedStage(PipelineStage):
    """A ``PipelineStage`` that tells ``marks`` what it does."""

    def __init__(self, module: StageModule, index: int, count: int, marks: Marks, **others: Any) -> None:
        super().__init__(module, index, count, **others)
        self._marks = marks

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """As torch's."""
        self._marks.begins("forward", fwd_chunk_id, received=self._receives(-1))
        output = super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        self._marks.ends(fwd_chunk_id)
        return output

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        """As torch's."""
        self._marks.begins("backward", bwd_chunk_id, received=self._receives(+1))
        super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
        self._marks.ends(bwd_chunk_id)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """As torch's."""
        self._marks.begins("backward", bwd_chunk_id, received=False)
        super().backward_weight_one_chunk(bwd_chunk_id, last_backward=last_backward)
        self._marks.ends(bwd_chunk_id)

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> Any:
        """As torch's."""
        if self._receives(-1):
            self._marks.waits(fwd_chunk_id)
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> Any:
        """As torch's."""
        if self._receives(+1):
            self._marks.waits(bwd_chunk_id)
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def _receives(self, direction: int) -> bool:
        """Whether there is a stage before this one, or behind it, on another rank."""
        other = self.stage_index + direction
        return 0 <= other < self.num_stages and self.stage_index_to_group_rank[other] != self.group_rank
