"""Sees when ranks stall, and tells why: as an event of a run, or as a line below a cell."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from workbench.cluster.session import Session
from workbench.diagnosis.causes import Cause
from workbench.diagnosis.diagnosis import Diagnosis
from workbench.diagnosis.glimpse import glimpses
from workbench.diagnosis.stalls import StallJudge
from workbench.run.why import why_session

#: seconds between two looks, and from one verdict of a lasting stall to the next
_LOOK_EVERY_S, _AGAIN_S = 0.5, 30.0


class StallWatch:
    """Watches the first ``ranks`` ranks of a session. Call ``look`` often; it reads little, and not at every call.

    ``stalled(diagnosis)`` is called when a stall begins, and again when its cause has changed; ``moving(seconds)`` when
    it has ended after so long. ``waited_s``: the longest that a rank has waited in a collective in vain by the last
    verdict; 0 where ranks go on, or where one stands in the debugger. ``missing``: those that
    it waited for.
    """

    def __init__(
        self,
        session: Session,
        ranks: int,
        *,
        stalled: Callable[[Diagnosis], object],
        moving: Callable[[float], object],
    ) -> None:
        self._session = session
        self._ranks = range(ranks)
        self._stalled, self._moving = stalled, moving
        self._judge = StallJudge()
        self._next_look = self._next_verdict = 0.0
        self._told: tuple[object, ...] | None = None  # cause and missing ranks of the last verdict of this stall
        self._began = 0.0
        self.waited_s = 0.0
        self.missing: tuple[int, ...] = ()

    def look(self) -> None:
        """Looks at the ranks if it is time to, and tells what has changed. A verdict takes about a second."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY_S
        match self._judge.judge(glimpses(self._session.directory, self._ranks), now):
            case "stalled":
                self._began = now
                self._tell()
            case "moving":
                self.waited_s = 0.0
                if self._told is not None:
                    self._moving(now - self._began)
                self._told = None
            case _ if self._judge.since is not None and now >= self._next_verdict:
                self._tell()

    def _tell(self) -> None:
        diagnosis = why_session(self._session)
        self._next_verdict = time.monotonic() + _AGAIN_S
        waited_s = max((rank.waited_s for rank in diagnosis.ranks), default=0.0)
        self.waited_s = 0.0 if diagnosis.cause == Cause.DEBUGGER else waited_s
        self.missing = diagnosis.missing
        known = (diagnosis.cause, diagnosis.missing)
        if known != self._told:
            self._told = known
            self._stalled(diagnosis)


def below_a_cell(session: Session) -> StallWatch:
    """Returns what prints why a cell does not go on, once it has stalled, and when it goes on."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    return StallWatch(
        session,
        session.n,
        stalled=lambda diagnosis: say(f"stalled: {diagnosis.headline} (workbench why in a terminal tells more)"),
        moving=lambda seconds_: say(f"the ranks go on, after {seconds_:.0f} s"),
    )
