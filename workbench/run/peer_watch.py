"""The ranks of a run whose peer failed or died: some would wait for it up to the timeout of their process group.

They get a few seconds to see it and end by themselves (a gloo rank does, within one), then an interrupt (breaks what
Python runs), then SIGKILL (breaks what a library runs: a collective, NCCL's above all). The ranks of a run whose
directory was deleted are interrupted at once: nothing of it can be kept, nor can it be asked to stop.
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
from workbench.run.occupant import RunOccupant

#: seconds after the first failure is seen: peers end by themselves; after the interrupt
ALONE_S = 5.0
INTERRUPTED_S = 2.0
_LOOK_EVERY_S = 0.25


def next_act(since_s: float | None, *, interrupted: bool) -> str:
    """What to do with peers that still run ``since_s`` seconds after the first failure (None: there is none)."""
    if since_s is None or since_s < ALONE_S:
        return ""
    if since_s < ALONE_S + INTERRUPTED_S:
        return "" if interrupted else "interrupt"
    return "kill"


class PeerWatch:
    """Watches the ranks of one run from a thread, until all have ended."""

    def __init__(self, session: Session, occupant: RunOccupant, submission: Submission) -> None:
        self._session = session
        self._occupant = occupant
        self._run = occupant.run
        self._submission = submission
        self._over = threading.Event()
        self._log_sizes: dict[Path, int] = {}
        self._failed: set[int] = set()
        submission.add_done_callback(lambda _: self._over.set())
        self._first_failure: float | None = None
        self._interrupted = False
        self._told = False
        tell = background.warner(
            f"the ranks of run {self._run.name!r} could not be watched or ended; this is tried again"
        )
        self._rounds = background.Rounds(tell)
        background.thread(self._watch, name=f"peers-{occupant.name}", failed=tell).start()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            with self._rounds:  # a server that is slow to answer is asked again; the ranks of one that is gone are over
                if self._look():
                    return

    def _look(self) -> bool:
        """Do what is due with ranks whose peer failed; whether nothing is left to do."""
        failed, gone = self._who_failed(), self._occupant.is_deleted
        if not failed and not gone:
            return False
        if self._first_failure is None:
            self._first_failure = time.monotonic()
            if gone:
                self._first_failure -= ALONE_S
                print(f"warning: {self._run.path} was deleted, so the run is ended", file=sys.stderr, flush=True)
        left = [rank for rank in self._submission.ranks if rank not in self._submission.ready_ranks()]
        match next_act(time.monotonic() - self._first_failure, interrupted=self._interrupted):
            case "interrupt":
                self._session.interrupt(left)
                self._interrupted = True
            case "kill":
                after = "the run was deleted" if gone else f"{format_ranks(failed)} failed"
                why = f"ended by the session: it did not end {ALONE_S + INTERRUPTED_S:g} s after {after}"
                why += "; run %dist_up to start again"
                if not self._told:
                    self._told = True
                    self._run.ranks_ended(left, why)
                self._session.end_ranks(left, why)
                return True
        return False

    def _who_failed(self) -> set[int]:
        """Ranks that died, that answered that they failed, or that say so in their log."""
        said = self._submission
        failed = set(said.dead_ranks())
        for rank in said.ready_ranks():
            outcome = Outcome.from_result(said.outputs[rank].result)
            if said.error(rank) is not None or (outcome is not None and outcome.state == "failed"):
                failed.add(rank)
        if self._logs_grew():
            self._failed |= self._occupant.failed_ranks()
        return failed | self._failed

    def _logs_grew(self) -> bool:
        """Whether a rank said something since the last look: a stat each, so that looking costs nothing."""
        sizes = {file: file.stat().st_size for file in self._run.path.glob("rank-*/events.arrow") if file.exists()}
        changed, self._log_sizes = sizes != self._log_sizes, sizes
        return changed
