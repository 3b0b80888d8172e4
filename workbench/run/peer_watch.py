"""Ending the ranks of a run after one of them failed or died: the others may wait for it in a collective for minutes.

First they get a few seconds to notice and end by themselves (a gloo rank does so within one second). Then they are
interrupted, which ends Python code, and last they are killed, which also ends a library's code (a collective of NCCL,
say). The ranks of a run whose directory was deleted are interrupted at once: they can record nothing, and cannot be
asked to stop.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from workbench.cluster.cells import Submission
from workbench.cluster.session import Session
from workbench.core import background
from workbench.errors import format_ranks
from workbench.events.outcome import Outcome
from workbench.run.job import TrainingJob

#: seconds that ranks have to end by themselves after the first failure was seen
GRACE_S = 5.0
#: seconds that they have after the interrupt
INTERRUPTED_S = 2.0
_LOOK_EVERY_S = 0.25


def next_action(since_s: float | None, *, interrupted: bool) -> str:
    """What to do with ranks that still run ``since_s`` seconds after the first failure (None: there is none):
    "interrupt", "kill", or "" for nothing yet."""
    if since_s is None or since_s < GRACE_S:
        return ""
    if since_s < GRACE_S + INTERRUPTED_S:
        return "" if interrupted else "interrupt"
    return "kill"


class PeerWatch:
    """Watches the ranks of one run from a thread, until all have ended."""

    def __init__(self, session: Session, job: TrainingJob, submission: Submission) -> None:
        self._session = session
        self._job = job
        self._submission = submission
        self._over = threading.Event()
        self._log_sizes: dict[Path, int] = {}
        self._failed: set[int] = set()
        submission.add_done_callback(lambda _: self._over.set())
        self._first_failure: float | None = None
        self._interrupted = False
        self._told = False
        tell = background.warner(f"the ranks of run {job.name!r} could not be watched or ended; this is tried again")
        self._rounds = background.Rounds(tell)
        background.thread(self._watch, name=f"peers-{job.name}", failed=tell).start()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            with self._rounds:  # a server that is slow to answer is asked again; the ranks of one that is gone are over
                if self._look():
                    return

    def _look(self) -> bool:
        """Interrupt or kill ranks whose peer failed, if that is due. Returns whether nothing is left to do."""
        failed, gone = self._failed_ranks(), self._job.is_deleted
        if not failed and not gone:
            return False
        if self._first_failure is None:
            self._first_failure = time.monotonic()
            if gone:
                self._first_failure -= GRACE_S
                print(f"warning: {self._job.path} was deleted, so the run is ended", file=sys.stderr, flush=True)
        left = [rank for rank in self._submission.ranks if rank not in self._submission.finished_ranks()]
        match next_action(time.monotonic() - self._first_failure, interrupted=self._interrupted):
            case "interrupt":
                self._session.interrupt(left)
                self._interrupted = True
            case "kill":
                after = "the run was deleted" if gone else f"{format_ranks(failed)} failed"
                why = f"ended by the session: it did not end {GRACE_S + INTERRUPTED_S:g} s after {after}"
                why += "; run %dist_up to start again"
                if not self._told:
                    self._told = True
                    self._job.ranks_ended(left, why)
                self._session.end_ranks(left, why)
                return True
        return False

    def _failed_ranks(self) -> set[int]:
        """Ranks that died, that answered that they failed, or that say so in their log."""
        submission = self._submission
        failed = set(submission.dead_ranks())
        for rank in submission.finished_ranks():
            outcome = Outcome.from_result(submission.outputs[rank].result)
            if submission.error(rank) is not None or (outcome is not None and outcome.state == "failed"):
                failed.add(rank)
        if self._logs_grew():
            self._failed |= self._job.failed_ranks()
        return failed | self._failed

    def _logs_grew(self) -> bool:
        """Whether a rank logged an event since the last look. Costs a stat for each rank."""
        sizes = {file: file.stat().st_size for file in self._job.path.glob("rank-*/events.arrow") if file.exists()}
        changed, self._log_sizes = sizes != self._log_sizes, sizes
        return changed
