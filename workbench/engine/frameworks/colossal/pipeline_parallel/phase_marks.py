"""What a pipeline stage does in the midst of a step: told by small wraps around the verbs of its schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench.engine.frameworks.torch_common.phase_marks import Mark


class _Stages:
    """Counts a pipeline's micro-batches and tells ``mark`` what its schedule does with which.

    A rank with several parts of the model computes one micro-batch for each stage with the first part, then the same
    ones with the next part.
    """

    def __init__(self, schedule: Any) -> None:
        self.mark: Mark = lambda phase, number: None
        self.first = self.forwards = self.backwards = 0
        manager = schedule.stage_manager
        self._stages, self._chunks = manager.num_stages, manager.num_model_chunks
        self._wrap(schedule, "forward_step", lambda: ("forward", self._forward()))
        self._wrap(schedule, "backward_step", lambda: ("backward", self._backward()))
        if manager.is_interleave or not manager.is_first_stage():
            self._wrap(schedule, "recv_forward", lambda: ("bubble", self._number(self.forwards)))
            self._wrap(schedule, "send_backward_recv_forward", lambda: ("bubble", self._number(self.forwards)))
            self._wrap(schedule, "send_backward", lambda: ("communication", self._number(self.backwards - 1)))
        if manager.is_interleave or not manager.is_last_stage():
            self._wrap(schedule, "recv_backward", lambda: ("bubble", self._number(self.backwards)))
            self._wrap(schedule, "send_forward_recv_backward", lambda: ("bubble", self._number(self.backwards)))
            self._wrap(schedule, "send_forward", lambda: ("communication", self._number(self.forwards - 1)))
        if manager.is_interleave:
            self._wrap(schedule, "send_forward_recv_forward", lambda: ("bubble", self._number(self.forwards)))
            self._wrap(schedule, "send_backward_recv_backward", lambda: ("bubble", self._number(self.backwards)))

    def _wrap(self, schedule: Any, name: str, place: Callable[[], tuple[str, int]]) -> None:
        verb = getattr(schedule, name, None)
        if verb is None:  # of another schedule
            return

        def marked(*args: Any, **kwargs: Any) -> Any:
            self.mark(*place())
            return verb(*args, **kwargs)

        setattr(schedule, name, marked)

    def _number(self, count: int) -> int:
        """Which micro-batch the forward or backward pass of that number in this step is of."""
        rounds, place = divmod(count, self._stages * self._chunks)
        return self.first + rounds * self._stages + place % self._stages

    def _forward(self) -> int:
        self.forwards += 1
        return self._number(self.forwards - 1)

    def _backward(self) -> int:
        self.backwards += 1
        return self._number(self.backwards - 1)


def mark_stages(schedule: Any, mark: Mark, *, first: int) -> None:
    """From now on ``schedule`` tells ``mark`` what it does; its next micro-batch has the number ``first``.

    Receiving is a bubble: the stage waits for its neighbour, and the message's own time is in it.
    """
    stages = getattr(schedule, "_workbench_stages", None)
    if stages is None:
        stages = schedule._workbench_stages = _Stages(schedule)
    stages.mark = mark
    stages.first, stages.forwards, stages.backwards = first, 0, 0
