"""``TrainingJob``: a run as the job that occupies the ranks of a session."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from workbench.cluster.base import private_directory
from workbench.cluster.cells import Submission
from workbench.cluster.output import CellFailure
from workbench.cluster.server.follow import RELOADED
from workbench.cluster.session import Session
from workbench.core import background
from workbench.core.records import END_STATES, RESTARTING, EventKind
from workbench.diagnosis.diagnosis import Diagnosis
from workbench.errors import ClusterError, RunDirectoryError
from workbench.events.decode import of_kind
from workbench.events.outcome import Outcome, failure
from workbench.run import branching
from workbench.run.run import Run
from workbench.run.session_log import SessionLog, open_log
from workbench.rundir import checkpoints
from workbench.rundir.commands import offset_after, to_repeat
from workbench.rundir.state import ended as ended_state

#: the code that each rank executes. It reads its input from the run directory and returns an ``Outcome``
_TRAIN = "from workbench.engine.entry import train as _train; _train({path!r}, reloaded={reloaded}, **{attempted!r})"
#: seconds that ranks have to end by themselves after one failed, to end after an interrupt, to end after that where
#: their own training failed too, and to end once killed
GRACE_S = 5.0
INTERRUPTED_S = 2.0
FAILING_S = 15.0
#: seconds after which a rank that others wait for in a collective counts as failed
HANG_S = 1800.0
KILLED_S = 8.0
#: states of a rank whose peers wait for it in vain
FAILED = ("failed", RESTARTING)
_Value = TypeVar("_Value")


class TrainingJob:
    """A run that trains on the ranks of a session in this process; implements ``workbench.cluster.job.Job``.

    When the run directory was deleted or cannot be read, the run counts as one that has logged nothing.

    ``restart(job)`` starts ranks in the place of those that died, and ``job`` on all of them; where it is given, it is
    called in a thread when ranks failed or died after the first step, ``spec.max_restarts`` times at most. ``before``:
    the job that ended so.
    """

    def __init__(
        self,
        run: Run,
        restart: Callable[[TrainingJob], None] | None = None,
        *,
        before: TrainingJob | None = None,
        attempted: Mapping[str, Any] | None = None,
    ) -> None:
        self.run = run
        self._ranks = run.plan.ranks
        self._most_restarts = run.spec.max_restarts
        self._restart = restart
        self._restarts: int = 0 if before is None else before._restarts + 1
        self._attempted = {"restart": self._restarts, **(attempted or {})}
        self._began = time.time()
        self._memory: _Memory = _Memory() if before is None else before._memory
        self._log: SessionLog = open_log(run.path) if before is None else before._log

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.run.path

    @property
    def is_deleted(self) -> bool:
        """Whether the run directory no longer exists."""
        return not self.path.is_dir()

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, according to its logs. A deleted run counts as over, as its ranks are ended."""
        return _unless_deleted(lambda: ended_state(self.run.status), True)

    @property
    def release_timeout_s(self) -> float:
        """Seconds after which ``PeerWatch`` has ended ranks that did not end with the run."""
        return GRACE_S + INTERRUPTED_S + FAILING_S + KILLED_S

    def step_of(self, rank: int) -> int | None:
        """Return the last step that a rank finished; None before its first."""
        return _unless_deleted(lambda: self.run.step_of(rank), None)

    def failed_ranks(self) -> frozenset[int]:
        """Return the ranks that have logged that they failed."""
        return frozenset(self._in_state(FAILED))

    def _in_state(self, states: Sequence[str]) -> dict[int, float]:
        """Rank -> when it logged one of ``states``, since this job began."""
        nobody: dict[int, float] = {}
        return _unless_deleted(lambda: self.run.ranks_in_state(states, self._began), nobody)

    @property
    def _may_restart(self) -> bool:
        return self._restart is not None and self._restarts < self._most_restarts

    def give_up(self) -> None:
        """Record that a person interrupts the run: it is not started again, however its ranks end."""
        self._most_restarts = 0

    def rank_died(self, rank: int, reason: str) -> None:
        """Record that the process of a rank died. Ranks that the run does not use are ignored."""
        if rank < self._ranks:
            step = self.step_of(rank) or 0
            (self._log.rank_left if self._may_restart and step else self._log.rank_died)(rank, reason, step)

    def stalled(self, diagnosis: Diagnosis) -> None:
        """Record that the ranks do not go on, and why."""
        self._log.stalled(diagnosis.to_value(), self.run.last_step)

    def moving(self, after_s: float) -> None:
        """Record that they go on, after so many seconds."""
        self._log.moving(after_s, self.run.last_step)

    def ranks_ended(self, ranks: Sequence[int], why: str) -> None:
        """Record that the session ends ranks that wait for a failed one."""
        steps = {rank: self.step_of(rank) or 0 for rank in ranks}
        self._log.ranks_ended(steps, why, state=RESTARTING if self._may_restart else "failed")

    def start(self, session: Session) -> Submission:
        """Start training on the ranks of ``session``. The run occupies them until all have finished or died."""
        if self.run.spec.snapshot_every:
            self._memory.make()
        attempted = {**self._attempted, "snapshots": str(self._memory.directory or "")}
        code = _TRAIN.format(path=str(self.path), reloaded=RELOADED, attempted=attempted)
        submission = session.submit(code, ranks=range(self._ranks), in_group=False)
        session.job = self
        session.on_rank_died(self.rank_died)

        def ended(submission: Submission) -> None:
            session.forget_rank_died(self.rank_died)
            session.job = None
            dead = submission.dead_ranks()
            if session.is_down and dead:  # a person ended them, or the kernel did: none of them failed
                self._log.session_ended(next(iter(dead.values())))
                dead = {}
            self.end({rank: self._outcome_of(submission, rank) for rank in submission.ranks}, dead)

        submission.add_done_callback(ended)
        return submission

    def end(self, outcomes: Mapping[int, Outcome | None], dead: Mapping[int, str]) -> None:
        """Record how the ranks ended, and start the branch that they stopped for, if there is one; or the run again.

        ``outcomes``: the outcome that each rank returned (None: it returned none); ``dead``: rank -> why it died.
        """
        reason = ""
        if self._may_restart and not self.is_deleted:
            for rank, why in dead.items():  # a death that is known last explains what the others saw of it
                self.rank_died(rank, why)
            reason = self._reason_to_restart(outcomes, dead)
        if reason:
            self._restart_in_thread(reason, outcomes, dead)
        else:
            self._ended(outcomes, dead)

    def _ended(self, outcomes: Mapping[int, Outcome | None], dead: Mapping[int, str]) -> None:
        """Record how the run ended, and start its branch."""
        for rank, why in dead.items():
            if rank < self._ranks:
                self._log.rank_died(rank, why, self.step_of(rank) or 0)
        self._memory.free()
        logged = self._in_state(END_STATES)
        branch = _unless_deleted(self.run.agreed_branch, None)
        self._log.end(outcomes, logged=logged)
        if branch is not None:
            branching.launch_in_thread(self.path, branch)

    def _reason_to_restart(self, outcomes: Mapping[int, Outcome | None], dead: Mapping[int, str]) -> str:
        """Why the ranks have to begin again; "" where they need not, or where a restart would not help: they finished,
        somebody interrupted them, or one failed before its first step."""
        lost = [rank for rank in dead if rank < self._ranks]
        if any(not self.step_of(rank) for rank in lost) or any(
            outcome is None or outcome.state != RESTARTING for rank, outcome in outcomes.items() if rank not in lost
        ):
            return ""
        first = _unless_deleted(lambda: self.run.first_failure(restarting=True, since=self._began), None)
        return "" if first is None else f"{first.who}: {first.message}"

    def _restart_in_thread(self, reason: str, outcomes: Mapping[int, Outcome | None], dead: Mapping[int, str]) -> None:
        """Start the run again on all ranks, and return at once. Where that fails, the run has failed as it did."""
        assert self._restart is not None
        restart, number, most = self._restart, self._restarts + 1, self._most_restarts

        def begin_again() -> None:
            failed_at = min(self._in_state(FAILED).values(), default=self._began)
            attempted = self._where_to_begin(offset_after(self.path, failed_at))
            saved = attempted["checkpoint"]
            where = f"step {checkpoints.step_of(Path(saved))}" if saved else "the beginning"
            self._say(f"goes on from {where} (restart {number} of {most}): {reason}")
            self._log.restarts(number, most, reason, self.step_of(0) or 0)
            restart(TrainingJob(self.run, restart, before=self, attempted=attempted))

        def failed(error: BaseException) -> None:
            self._say(f"could not be restarted: {background.described(error)}")
            self._ended(outcomes, dead)

        background.thread(begin_again, name=f"restart-{self.name}", failed=failed).start()

    def _where_to_begin(self, offset: int) -> dict[str, Any]:
        """What a restart begins with, as ``workbench.engine.entry.Attempt`` says: the newest checkpoint or copy in
        memory, unless the run has gone back to another one since."""
        rows = self.run.event_rows()
        back = [event for event in of_kind(rows, EventKind.CHECKPOINT, "restored", rank=0)]
        places = [self.path, *filter(None, [self._memory.directory])]
        newest = checkpoints.newest_of(places, since=back[-1].time if back else 0.0)
        found = str(newest) if newest is not None else str(back[-1].fields.get("path", "")) if back else ""
        repeated = [(step, command.to_line()) for step, command in to_repeat(self.path, rows)]
        return {"checkpoint": found, "offset": offset, "repeated": repeated}

    def _say(self, text: str) -> None:
        print(f"run {self.name!r} {text}", file=sys.stderr, flush=True)

    def _outcome_of(self, submission: Submission, rank: int) -> Outcome | None:
        """Return the outcome of a rank; None when it died or returned nothing that can be read."""
        error = submission.error(rank)
        if isinstance(error, CellFailure):
            interrupted = error.ename == KeyboardInterrupt.__name__  # by who waits for another rank, or by a person
            told = failure(error.ename, error.evalue, error.traceback, peer=interrupted)
            state = RESTARTING if interrupted and self._may_restart else "failed"
            return Outcome(state=state, step=self.step_of(rank) or 0, failure=told)
        return Outcome.from_result(submission.outputs[rank].result)


class _Memory:
    """The directory in memory for copies of a training's state; ``directory``: None where none are made."""

    def __init__(self) -> None:
        self.directory: Path | None = None
        self._lock = -1

    def make(self) -> None:
        """Makes it, unless it is there. Raises ``ClusterError`` where this host has no files in memory."""
        if self.directory is None:
            try:
                self.directory, self._lock = private_directory.make(private_directory.MEMORY)
            except OSError as error:
                raise ClusterError(
                    f"--snapshot-every needs {private_directory.MEMORY}, files in memory, which cannot be used here "
                    f"({error.strerror}): leave it out, and use --save-every"
                ) from error

    def free(self) -> None:
        """Removes it."""
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            os.close(self._lock)
            self.directory = None


def _unless_deleted(read: Callable[[], _Value], otherwise: _Value) -> _Value:
    """Return ``read()``, or ``otherwise`` when the run directory was deleted or cannot be read."""
    try:
        return read()
    except RunDirectoryError:
        return otherwise
