"""When ranks count as stalled: limits that learn from how long steps and phases usually take. Pure.

A training stalls when a rank is in one phase for ``FACTOR`` times as long as a step (or, outside of steps, that phase)
has lately taken at most, and for ``FLOOR_S`` at least; before the first step has ended, ``FIRST_S`` at least. A cell
stalls when a rank waits in one collective for ``FLOOR_S``: computing may take as long as it wants. A process that is
stopped, or that stands in the debugger, counts at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workbench.core.live.rank_row import CELL, DEBUGGER, IDLE, PAUSED, RankRow

FLOOR_S, FACTOR, FIRST_S = 10.0, 5.0, 60.0
#: the phases that a step consists of
_STEP_PHASES = ("data", "transfer", "forward_backward", "forward", "backward", "communication", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """What is seen of a rank at little cost. ``state``: letter of its process; ``waits_since``: ``time.monotonic()``
    since which it waits in a collective, or None."""

    row: RankRow
    state: str
    waits_since: float | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether its process is stopped, by a signal or a debugger, or stands at a prompt of one."""
        return self.state in ("T", "t") or self.row.phase == DEBUGGER


def limit_s(row: RankRow) -> float:
    """Returns the seconds after which a training rank counts as stalled in its phase."""
    usual_s = row.usual_step_s if row.phase in _STEP_PHASES else row.usual_s
    return max(FLOOR_S, FACTOR * usual_s) if usual_s else FIRST_S


def is_overdue(glimpse: Glimpse, now: float) -> bool:
    """Returns whether a rank is longer in its phase, or in a collective of a cell, than is usual."""
    row, since = glimpse.row, glimpse.waits_since
    if row.phase in (IDLE, PAUSED):
        return False
    if row.phase == CELL:
        return since is not None and now - since > FLOOR_S
    return now - row.since > limit_s(row)


class StallJudge:
    """Decides when a stall begins and ends. ``since``: ``time.monotonic()`` of its begin as it was seen, or None."""

    def __init__(self) -> None:
        self.since: float | None = None
        self._stopped: set[int] = set()

    def judge(self, glimpses: Mapping[int, Glimpse], now: float) -> str:
        """Returns "stalled" when a stall begins, "moving" when it ends, and "" otherwise.

        A process has to be stopped at two calls in a row. Ranks that only wait for a cell are never stalled.
        """
        stopped = {rank for rank, each in glimpses.items() if each.is_stopped and each.row.phase not in (IDLE, PAUSED)}
        lasting, self._stopped = stopped & self._stopped, stopped
        is_stalled = bool(lasting) or any(is_overdue(each, now) for each in glimpses.values())
        if is_stalled and self.since is None:
            self.since = now
            return "stalled"
        if not is_stalled and not stopped and self.since is not None:
            self.since = None
            return "moving"
        return ""
