"""Watches the ranks of a run: tells when they stall, and ends them after one of them failed or died.

The others may wait for it in a collective for minutes.

A rank that has kept others waiting for half an hour counts as failed.
The collectives in which they wait are broken at once, and the ranks have a few seconds to end. Then they are
interrupted, which ends Python code. Finally they are killed, which also ends library code such as a collective of
NCCL. A rank whose own training has failed is not interrupted while it writes what happened, and has longer to end.
While a rank stands in the debugger, nothing is ended. When the run directory was deleted, the ranks are interrupted at
once: they can neither log nor read commands.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from workbench.cluster.cells import Submission
from workbench.cluster.debugger.dialogue import in_debugger
from workbench.cluster.session import Session
from workbench.core import background
from workbench.core.live.rank_row import is_leaving
from workbench.errors import format_ranks
from workbench.events.outcome import Outcome
from workbench.run import job as run_job
from workbench.run.job import FAILED, TrainingJob
from workbench.run.stalls import StallWatch

_LOOK_EVERY_S = 0.25


def next_action(since_s: float | None, *, interrupted: bool) -> str:
    """Return what to do with ranks that still run: "interrupt", "kill", or "" for nothing yet.

    ``since_s``: seconds since the first failure; None: no rank has failed.
    """
    if since_s is None or since_s < run_job.GRACE_S:
        return ""
    if since_s < run_job.GRACE_S + run_job.INTERRUPTED_S:
        return "" if interrupted else "interrupt"
    return "kill"


class PeerWatch:
    """Watches the ranks of one run in a thread until all have ended."""

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
        self._recorded: set[int] = set()
        self._late: tuple[int, ...] = ()
        self._stalls = StallWatch(session, len(submission.ranks), stalled=job.stalled, moving=job.moving)
        warn = background.warner(f"the ranks of run {job.name!r} could not be watched or ended; retrying")
        self._rounds = background.Rounds(warn)
        self._releases = background.Rounds(background.warner("ranks that wait for one that failed were not released"))
        background.thread(self._watch, name=f"peers-{job.name}", failed=warn).start()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            with self._rounds:  # an error, such as a slow answer of the rank server, is retried in the next round
                if self._check():
                    return

    def _check(self) -> bool:
        """Interrupt or kill the ranks when it is time to. Returns whether the watch is over."""
        failed, deleted = self._failed_ranks(), self._job.is_deleted
        if not failed and not deleted:
            self._stalls.look()
            if self._stalls.waited_s < run_job.HANG_S:
                return False
            self._late = self._stalls.missing or self._submission.ranks
        if self._first_failure is None:
            self._first_failure = time.monotonic()
            if deleted:
                self._first_failure -= run_job.GRACE_S
                print(f"warning: {self._job.path} was deleted, so the run is ended", file=sys.stderr, flush=True)
        running, minutes = self._submission.running_ranks(), run_job.HANG_S / 60
        late = {rank: f"rank {rank} has kept others waiting for {minutes:.0f} minutes" for rank in self._late}
        causes = late or {rank: f"rank {rank} failed" for rank in failed}
        if causes:
            with self._releases:  # where that fails, ranks are interrupted and killed all the same
                self._session.release(self._submission, causes)
        if not deleted and in_debugger(self._session.directory, running):
            self._first_failure = time.monotonic()  # somebody looks into it
            return False
        leaving = self._leaving(running)
        since_s = time.monotonic() - self._first_failure
        overdue = leaving if since_s >= run_job.GRACE_S + run_job.INTERRUPTED_S + run_job.FAILING_S else []
        others = [rank for rank in running if rank not in leaving]
        match next_action(since_s, interrupted=self._interrupted):
            case "interrupt":
                self._session.interrupt(others)
                self._interrupted = True
            case "kill" if others or overdue:
                why = next(iter(late.values()), f"{format_ranks(failed)} failed")
                self._kill([*others, *overdue], "the run was deleted" if deleted else why)
                return not leaving or bool(overdue)
        return False

    def _kill(self, ranks: list[int], cause: str) -> None:
        ended_s = run_job.GRACE_S + run_job.INTERRUPTED_S
        reason = f"ended by the session: it was still running {ended_s:g} s after {cause}; run %dist_up to start again"
        new = [rank for rank in ranks if rank not in self._recorded]
        if new:
            self._recorded.update(new)
            self._job.ranks_ended(new, reason)
        self._session.end_ranks(ranks, reason)

    def _leaving(self, running: list[int]) -> list[int]:
        """Return the ranks that write down how their training failed, and leave it."""
        began = self._submission.began
        return [rank for rank in running if is_leaving(self._session.directory, rank, began=began)]

    def _failed_ranks(self) -> set[int]:
        """Return the ranks that died, returned a failure, or logged one."""
        submission = self._submission
        failed = set(submission.dead_ranks())
        for rank in submission.finished_ranks():
            outcome = Outcome.from_result(submission.outputs[rank].result)
            if submission.error(rank) is not None or (outcome is not None and outcome.state in FAILED):
                failed.add(rank)
        if self._logs_grew():
            self._failed |= self._job.failed_ranks()
        return failed | self._failed

    def _logs_grew(self) -> bool:
        """Return whether any rank has logged an event since the last call. Costs one ``stat`` per rank."""
        sizes = {file: file.stat().st_size for file in self._job.path.glob("rank-*/events.arrow") if file.exists()}
        changed, self._log_sizes = sizes != self._log_sizes, sizes
        return changed
