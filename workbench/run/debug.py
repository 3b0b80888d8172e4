"""Talks to ranks in the debugger: those of a run, of this session, or the newest of this user on this host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from workbench.cluster.debugger.channel import GO_ON
from workbench.cluster.debugger.dialogue import Dialogue, in_debugger
from workbench.cluster.hosts.placement import parse_ranks
from workbench.cluster.session import Session
from workbench.core.live import rank_row
from workbench.errors import ClusterError, RunError, format_ranks
from workbench.run.run import Run
from workbench.run.why import live_directory, newest_ranks

_FAILED = "__import__('pkgutil').resolve_name('workbench.cluster.debugger.on_rank:failed')()"
_LOOK_BACK = "__import__('pkgutil').resolve_name('workbench.cluster.debugger.on_rank:look_back')()"
#: seconds between looks whether a rank that runs has stopped again
_AGAIN_S = 0.05
#: seconds without one that has, after which nobody is asked any more
_GONE_S = 1.0


def debug(
    run: Run | str | Path | None = None,
    targets: str = "all",
    *,
    ask: Callable[[str], str] | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Talk to ranks that ``breakpoint()`` has stopped, until they go on and none stops within a second.

    ``run``: a run, its name or its directory; None: the ranks of this session, else the newest ranks of this user on
    this host. ``targets``: ranks, as for ``-t``. ``ask``, ``say``: in place of ``input`` and ``print``. On Ctrl-C the
    ranks go on, and pass over the breakpoints of their cell or training. When none has stopped, opens the debugger
    where the last cell or training of this session's ranks failed, if it did.

    Raises ``ClusterError`` when there is nothing to debug, and ``RunError`` for a run whose ranks are not on this host.
    """
    session = Session.current() if run is None else None
    if run is not None:
        run = run if isinstance(run, Run) else Run(run)
        directory = live_directory(run)
        if directory is None:
            raise RunError(f"the ranks of run {run.name!r} are not seen from here: it has ended, or is on another host")
    else:
        directory = session.directory if session is not None else newest_ranks()
    known = rank_row.ranks_in(directory)
    ranks = parse_ranks(targets, max(known, default=0) + 1)
    if in_debugger(directory, ranks):
        _talk(Dialogue(directory, ranks, ask=ask, say=say))
        return
    if session is None or session.is_busy():
        raise ClusterError(
            f"{format_ranks(ranks)} {'is' if len(ranks) == 1 else 'are'} not in the debugger: breakpoint() in a %%dist "
            "cell or a training step stops a rank"
        )
    _look_back(session, ranks)


def asked_while_waiting(run: Run) -> Callable[[], bool]:
    """Return a function for those who wait for a run: it talks to ranks of this session that have stopped in the
    debugger, as ``debug`` does, and returns whether the run has ended. In the main thread alone it talks."""
    may_ask = threading.current_thread() is threading.main_thread()

    def ended() -> bool:
        session = Session.current()
        if may_ask and session is not None and in_debugger(session.directory, range(session.n)):
            _talk(Dialogue(session.directory, range(session.n)))
        return run.ended()

    return ended


def _talk(dialogue: Dialogue) -> None:
    last = time.monotonic()
    try:
        while True:
            if dialogue.is_due():
                dialogue.talk()
                last = time.monotonic()
            time.sleep(_AGAIN_S)
            if time.monotonic() >= last + _GONE_S:
                return
    except KeyboardInterrupt:
        dialogue.leave(GO_ON)
    finally:
        dialogue.close()


def _look_back(session: Session, ranks: Sequence[int]) -> None:
    """Open the debugger on those of ``ranks`` whose last cell or training failed."""
    found = session.ask(_FAILED, ranks).raise_on_error()
    failed = [rank for rank in ranks if found[rank].result == "True"]
    if not failed:
        raise ClusterError(
            f"{format_ranks(ranks)} neither stopped at a breakpoint nor failed in the last cell or training: "
            "breakpoint() in a %%dist cell or a training step stops a rank"
        )
    session.ask(_LOOK_BACK, failed)
