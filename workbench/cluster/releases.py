"""Releases ranks that wait in a collective for a rank that cannot come: it raised, or Ctrl-C was pressed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from workbench.cluster.cells import Submission
from workbench.core import background
from workbench.errors import ClusterError, RankDiedError, format_ranks

_RELEASE = "workbench.engine.collectives.release:release"
#: seconds in which other ranks may raise by themselves, as after an error in the cell that all ranks meet
_GRACE_S = 0.1
#: seconds between two looks at ranks that still run
_AGAIN_S = 0.4
_MOST_TEXT = 200
#: seconds that ranks have to end a cell after Ctrl-C: collectives are broken meanwhile, what still runs then is ended
BOUND_S = 3.0

#: ``call(ranks, function, arguments)``: calls a function in ranks, and waits until they were told
Call = Callable[[Sequence[int], str, dict[str, Any]], None]


def failures_of(submission: Submission) -> dict[int, str]:
    """Returns the ranks of a cell that raised or died, each with what happened in a line."""
    found = {}
    for rank in submission.ranks:
        error = submission.error(rank)
        if isinstance(error, RankDiedError):
            found[rank] = f"rank {rank} died"
        elif error is not None:
            text = error.evalue.strip().partition("\n")[0]
            text = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} …"
            found[rank] = f"rank {rank} raised {error.ename}{': ' if text else ''}{text}"
    return found


def release_waiting(submission: Submission, call: Call) -> None:
    """Starts a thread that releases the ranks of a cell that wait in a collective for one that raised."""

    def work() -> None:
        why, pause = "", _GRACE_S
        while not submission.wait_until_finished(pause):
            failed = failures_of(submission)
            why = why or next(iter(failed.values()))  # the first cause, whatever fails of it
            _release(submission, call, dict.fromkeys(failed, why), "")
            pause = _AGAIN_S

    warn = background.warner("ranks that wait for one that failed could not be released")
    background.thread(work, name="release-ranks", failed=warn).start()


def release_from(submission: Submission, call: Call, failed: dict[int, str]) -> None:
    """Releases the ranks of a training that wait for one of ``failed`` (rank -> what happened to it, in words)."""
    _release(submission, call, failed, "")


def _release(submission: Submission, call: Call, failed: dict[int, str], reason: str) -> None:
    running = submission.running_ranks()
    if running:
        told = {str(rank): why for rank, why in failed.items()}
        call(running, _RELEASE, {"cell": submission.number, "failed": told, "reason": reason})


def interrupt(submission: Submission, *, signal: Callable[[Sequence[int]], None], call: Call) -> None:
    """Ends a cell that Ctrl-C interrupted: SIGINT to its ranks, then breaks the collectives that they wait in.

    ``signal(ranks)`` sends SIGINT. Says what it does where that does not end the cell. Waits ``BOUND_S`` seconds at
    most; ranks in native code, or that catch the interrupt, still run then. A second Ctrl-C raises
    ``KeyboardInterrupt``.
    """
    signal(submission.running_ranks())
    if submission.wait_until_finished(0.3):
        return
    print(
        f"interrupt: {format_ranks(submission.running_ranks())} did not stop within 0.3 s; collectives that wait are "
        f"broken; what still runs after {BOUND_S:g} s is ended (press again to end it now)",
        file=sys.stderr,
        flush=True,
    )
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        try:
            _release(submission, call, {}, "the cell was interrupted")
        except ClusterError as error:
            print(f"interrupt: {error}", file=sys.stderr, flush=True)
        if submission.wait_until_finished(_AGAIN_S):
            return


def interrupt_copy(result: Any, ranks: Sequence[int], signal: Callable[[Sequence[int]], None]) -> list[int]:
    """Ends a copy of values to or from ranks that Ctrl-C interrupted; returns the ranks that still are at it after
    ``BOUND_S`` seconds. ``result``: ipyparallel's ``AsyncResult``, with a request to each of ``ranks``."""
    signal(ranks)
    result.wait(BOUND_S)
    return [rank for rank, request in zip(ranks, result.msg_ids, strict=True) if request in result._client.outstanding]
