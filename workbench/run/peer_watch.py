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
from workbench.errors import ClusterError, format_ranks
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
        threading.Thread(target=self._watch, name=f"peers-{job.name}", daemon=True).start()

    def _watch(self) -> None:
        first, interrupted = None, False
        while not self._over.wait(_LOOK_EVERY_S):
            failed, gone = self._failed_ranks(), self._job.is_deleted
            if not failed and not gone:
                continue
            if first is None:
                first = time.monotonic()
                if gone:
                    first -= GRACE_S
                    print(f"warning: {self._job.path} was deleted, so the run is ended", file=sys.stderr, flush=True)
            left = [rank for rank in self._submission.ranks if rank not in self._submission.ready_ranks()]
            try:
                match next_action(time.monotonic() - first, interrupted=interrupted):
                    case "interrupt":
                        interrupted = True
                        self._session.interrupt(left)
                    case "kill":
                        after = "the run was deleted" if gone else f"{format_ranks(failed)} failed"
                        why = f"ended by the session: it did not end {GRACE_S + INTERRUPTED_S:g} s after {after}"
                        why += "; run %dist_up to start again"
                        self._job.ranks_ended(left, why)
                        self._session.end_ranks(left, why)
                        return
            except (ClusterError, TimeoutError):
                return  # the rank server is gone, and its ranks with it

    def _failed_ranks(self) -> set[int]:
        """Ranks that died, that answered that they failed, or that say so in their log."""
        submission = self._submission
        failed = set(submission.dead_ranks())
        for rank in submission.ready_ranks():
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
