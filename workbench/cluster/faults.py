"""Faults on purpose, for teaching and for tests: what a training does when a rank dies, stops, or loses its network."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence

from workbench.cluster.base.processes import is_stopped
from workbench.cluster.session import Session
from workbench.core import background
from workbench.errors import ClusterError, ConfigError, format_ranks

KILL, STOP, CONTINUE, DELAY, DROP, NAN = "kill", "stop", "continue", "delay", "drop", "nan"
#: fault -> what it does, in words
FAULTS = {
    KILL: "killed (SIGKILL)",
    STOP: f"stopped (SIGSTOP) until %dist_fault {CONTINUE}",
    CONTINUE: "told to go on (SIGCONT)",
    DELAY: "stopped for {for_s:g} s",
    DROP: "told to close the connections of their process groups",
    NAN: "told to give NaN as the output of the next module that runs in training mode",
}
#: seconds that ranks have to end, or to stop
_OVER_S = 30.0
_SIGNALS = {KILL: signal.SIGKILL, STOP: signal.SIGSTOP, CONTINUE: signal.SIGCONT, DELAY: signal.SIGSTOP}


def fault(session: Session, kind: str, ranks: Sequence[int], *, for_s: float = 5.0) -> str:
    """Brings a fault about in ranks, whatever they do, and returns in words what was done.

    ``kind``: a key of ``FAULTS``. ``for_s``: seconds of a ``delay``. Raises ``ConfigError`` for an unknown fault or a
    time that is not positive, and ``ClusterError`` when a rank cannot be reached.
    """
    if kind not in FAULTS:
        raise ConfigError(f"{kind!r} is no fault: choose {', '.join(FAULTS)}", field="fault")
    if for_s <= 0:
        raise ConfigError(f"--for must be above 0 seconds, not {for_s:g}", field="--for")
    living = [rank for rank in ranks if rank not in session.dead]
    if not living:
        raise ClusterError(f"{format_ranks(ranks)} ended before: run %dist_up to start them anew")
    if kind in _SIGNALS:
        session.signal(_SIGNALS[kind], living)
    elif kind == DROP:
        session.call(living, "workbench.engine.collectives.release:drop", {"reason": "dropped by %dist_fault"})
    else:
        session.call(living, "workbench.engine.faults.planted:give_nan", {})
    if kind in (KILL, STOP, DELAY):
        _wait_until_over(session, living, kind)
    if kind == DELAY:
        _continue_later(session, living, for_s)
    return f"{format_ranks(living)} {'was' if len(living) == 1 else 'were'} {FAULTS[kind].format(for_s=for_s)}"


def _wait_until_over(session: Session, ranks: Sequence[int], kind: str) -> None:
    """A process ends, or stops, when it gets a core, and one that waits for a disk once it no longer does."""
    deadline = time.monotonic() + _OVER_S
    running = list(ranks)
    while running := [
        rank for rank in running if rank not in session.dead and (kind == KILL or not is_stopped(session.pids[rank]))
    ]:
        if time.monotonic() > deadline:
            raise ClusterError(f"{format_ranks(running)} still ran {_OVER_S:.0f} s later: a disk may not answer")
        time.sleep(0.005)


def _continue_later(session: Session, ranks: Sequence[int], for_s: float) -> None:
    def go_on() -> None:
        try:
            session.signal(signal.SIGCONT, ranks)
        except ClusterError as error:
            if not session.is_down:
                print(f"warning: {format_ranks(ranks)} could not be continued: {error}", file=sys.stderr)

    background.timer(for_s, go_on, failed=background.warner("ranks that were delayed could not be continued")).start()
