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
from workbench.errors import ClusterError, format_ranks
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
        threading.Thread(target=self._watch, name=f"peers-{occupant.name}", daemon=True).start()

    def _watch(self) -> None:
        first, interrupted = None, False
        while not self._over.wait(_LOOK_EVERY_S):
            failed, gone = self._who_failed(), self._occupant.is_deleted
            if not failed and not gone:
                continue
            if first is None:
                first = time.monotonic()
                if gone:
                    first -= ALONE_S
                    print(f"warning: {self._run.path} was deleted, so the run is ended", file=sys.stderr, flush=True)
            left = [rank for rank in self._submission.ranks if rank not in self._submission.ready_ranks()]
            try:
                match next_act(time.monotonic() - first, interrupted=interrupted):
                    case "interrupt":
                        interrupted = True
                        self._session.interrupt(left)
                    case "kill":
                        after = "the run was deleted" if gone else f"{format_ranks(failed)} failed"
                        why = f"ended by the session: it did not end {ALONE_S + INTERRUPTED_S:g} s after {after}"
                        why += "; run %dist_up to start again"
                        self._run.ranks_ended(left, why)
                        self._session.end_ranks(left, why)
                        return
            except (ClusterError, TimeoutError):
                return  # the rank server is gone, and its ranks with it

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
