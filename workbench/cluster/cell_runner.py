"""Runs cells on the ranks of a session: sends, waits for and interrupts them, and knows which ranks are in use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench.cluster import releases
from workbench.cluster.base.interrupts import deferred_interrupt
from workbench.cluster.base.processes import is_stopped
from workbench.cluster.cell_group import CellGroup
from workbench.cluster.cells import Submission, wait_until_done
from workbench.cluster.connection import Connection
from workbench.cluster.debugger.channel import INTERRUPT
from workbench.cluster.debugger.dialogue import Dialogue
from workbench.cluster.engines import get_value
from workbench.cluster.job import Job, wait_for_release
from workbench.cluster.roster import Roster
from workbench.core.live.rank_row import is_leaving
from workbench.errors import CellTimeoutError, RanksBusyError, format_ranks


class CellRunner:
    """The cells of a session. ``job``: the training run that uses the ranks, or None.

    ``directory``: that of the rank server. ``signal(ranks)`` sends SIGINT, ``call`` is that of ``releases``;
    ``on_interrupt(submission)`` is called when Ctrl-C is pressed while a cell is sent or waited for, and
    ``end_stuck(ranks)`` for ranks that go on copying after it.
    """

    def __init__(
        self,
        connection: Connection,
        roster: Roster,
        directory: Path,
        *,
        signal: Callable[[Sequence[int]], None],
        call: releases.Call,
        on_interrupt: Callable[[Submission], None],
        end_stuck: Callable[[Sequence[int]], None],
    ) -> None:
        self.job: Job | None = None
        self._connection = connection
        self._roster = roster
        self._directory = directory
        self._signal, self._call, self._on_interrupt, self._end_stuck = signal, call, on_interrupt, end_stuck
        self._group = CellGroup(directory)
        self._submissions: list[Submission] = []

    # --- cells

    def submit(self, code: str, targets: Sequence[int], *, ranks: int, in_group: bool) -> Submission:
        """Starts a cell on ``targets``, some of ``ranks`` in all. ``in_group``: see ``Session.submit``."""
        self.check_free(targets)
        if not in_group:
            self.leave_group()
        elif not self._roster.dead and not self.running_ranks():
            self._group.make(ranks, self.run_silently)
        submission = Submission(code, targets)
        if in_group:
            submission.on_first_error(lambda failed: releases.release_waiting(failed, self._call))
        try:
            with deferred_interrupt():  # a cell that was sent to some ranks could not be interrupted
                self._keep(submission)
                self._connection.send(submission)
                for rank in set(targets) & set(self._roster.dead):  # ranks that died since the check
                    submission.mark_dead(rank, self._roster.dead[rank])
        except KeyboardInterrupt:
            self._on_interrupt(submission)
            raise
        return submission

    def run_silently(self, submission: Submission, timeout: float | None = None) -> None:
        """Runs code that is none of the user's, and waits for it: ranks keep their directory, modules and group."""
        self._keep(submission)
        self._connection.send(submission, follows=False)
        self.wait(submission, timeout)

    def _keep(self, submission: Submission) -> None:
        self._submissions = [other for other in self._submissions if not other.done()] + [submission]

    def wait(
        self,
        submission: Submission,
        timeout: float | None = None,
        *,
        while_waiting: Callable[[Submission], None] | None = None,
    ) -> None:
        """Waits for a submission; see ``Session.wait``."""
        dialogue = Dialogue(self._directory, submission.ranks)
        may_ask = threading.current_thread() is threading.main_thread()

        def look(waiting: Submission) -> None:
            if while_waiting is not None:
                while_waiting(waiting)
            if may_ask and dialogue.is_due():
                dialogue.talk()

        try:
            finished = wait_until_done(submission, timeout, look)
        except KeyboardInterrupt:
            dialogue.leave(INTERRUPT)
            self._on_interrupt(submission)
            raise
        finally:
            dialogue.close()
        self._roster.raise_if_dead(
            submission.dead_ranks(), "the other ranks may be waiting for it: run %dist_up to restart the ranks"
        )
        if not finished:
            running = submission.running_ranks()
            raise CellTimeoutError(
                f"{format_ranks(running)} did not finish within {timeout:g} s and still "
                f"run{'s' if len(running) == 1 else ''} the cell: wait longer (session.wait(submission)), or interrupt "
                "it (session.interrupt_cell(submission))"
            )

    def interrupt(self, submission: Submission) -> None:
        """SIGINT to its ranks, then breaks the collectives that they wait in; see ``releases.interrupt``."""
        releases.interrupt(submission, signal=self._signal, call=self._call)

    def stuck_ranks(self, submission: Submission) -> list[int]:
        """Those that run a cell on and on; not those that have left it, and whose reply is on the way."""
        running = submission.running_ranks()
        return [rank for rank in running if not is_leaving(self._directory, rank, began=submission.began)]

    def release(self, submission: Submission, failed: dict[int, str]) -> None:
        """Breaks the collectives in which its ranks wait for one of ``failed`` (rank -> what happened)."""
        releases.release_from(submission, self._call, failed)

    def transfer(self, action: Callable[[Any], Any], targets: list[int]) -> Any:
        """The value of ``action(view)``, an ``AsyncResult`` of the ranks ``targets``."""
        self.check_free(targets)
        result = action(self._connection.view(targets))
        try:
            while not result.wait(0.1):
                self._roster.raise_if_dead(targets, "run %dist_up to restart the ranks")
        except KeyboardInterrupt:
            self._end_stuck(releases.interrupt_copy(result, targets, self._signal))
            raise
        return get_value(result)

    def leave_group(self) -> None:
        """Records that some ranks leave the process group of cells, as those of a training do."""
        self._group.mark_left()

    def mark_dead(self, rank: int, reason: str) -> None:
        """Records in all cells that a rank has ended."""
        for submission in list(self._submissions):
            submission.mark_dead(rank, reason)

    # --- which ranks are in use

    def unfinished(self) -> list[Submission]:
        """The cells that some ranks still run."""
        return [each for each in list(self._submissions) if not each.done()]

    def running_ranks(self) -> set[int]:
        """The ranks that run a cell."""
        return {rank for each in list(self._submissions) for rank in each.running_ranks()}

    def check_free(self, ranks: Sequence[int]) -> None:
        """Raises ``RanksBusyError`` while ranks are in use; see ``Session.check_free``."""
        wait_for_release(lambda: self.job)
        if self.job is not None:
            raise RanksBusyError(
                f"run {self.job.name!r} is training on these ranks: wait for it (run.wait()), or stop it (%dist_stop) "
                "first"
            )
        running = sorted(self.running_ranks() & set(ranks))
        if running:
            raise RanksBusyError(
                f"an earlier cell still runs on {format_ranks(running)}: wait for it, interrupt it "
                "(session.interrupt()), or restart the ranks with %dist_down and %dist_up"
            )
        for rank, pid in dict(self._roster.pids).items():
            if rank in ranks and rank not in self._roster.dead and is_stopped(pid):
                raise RanksBusyError(
                    f"rank {rank} is stopped by a signal (SIGSTOP, process {pid}): %dist_fault continue, or kill -CONT "
                    f"{pid}, lets it go on"
                )

    def state_of(self, rank: int, *, stopped: Sequence[int], running: set[int]) -> tuple[str, int | None]:
        """What a rank does, in words, and the last step that it finished, where it trains.

        ``stopped``: the ranks in the debugger; ``running``: those that run a cell.
        """
        job = self.job
        step = job.step_of(rank) if job is not None else None
        if rank in stopped:
            return "in the debugger", step
        if job is not None:
            return "training", step
        return ("running cell" if rank in running else "idle"), None
