"""``TrainingJob``: a run as the job that occupies the ranks of a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from workbench.cluster.cells import Submission
from workbench.cluster.output import CellFailure
from workbench.cluster.server.follow import RELOADED
from workbench.cluster.session import Session
from workbench.core.records import END_STATES
from workbench.diagnosis.diagnosis import Diagnosis
from workbench.errors import RunDirectoryError
from workbench.events.outcome import Outcome, failure
from workbench.run import branching
from workbench.run.run import Run
from workbench.run.session_log import open_log
from workbench.rundir.state import ended as ended_state

#: the code that each rank executes. It reads its input from the run directory and returns an ``Outcome``
_TRAIN = "from workbench.engine.entry import train as _train; _train({path!r}, reloaded={reloaded})"
_Value = TypeVar("_Value")


class TrainingJob:
    """A run that trains on the ranks of a session in this process; implements ``workbench.cluster.job.Job``.

    When the run directory was deleted or cannot be read, the run counts as one that has logged nothing.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._ranks = run.plan.ranks
        self._log = open_log(run.path)

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

    def step_of(self, rank: int) -> int | None:
        """Return the last step that a rank finished; None before its first."""
        return _unless_deleted(lambda: self.run.step_of(rank), None)

    def failed_ranks(self) -> frozenset[int]:
        """Return the ranks that have logged that they failed."""
        return _unless_deleted(lambda: self.run.ranks_in_state(("failed",)), frozenset())

    def rank_died(self, rank: int, reason: str) -> None:
        """Record that the process of a rank died. Ranks that the run does not use are ignored."""
        if rank < self._ranks:
            self._log.rank_died(rank, reason, self.step_of(rank) or 0)

    def stalled(self, diagnosis: Diagnosis) -> None:
        """Record that the ranks do not go on, and why."""
        self._log.stalled(diagnosis.to_value(), self.run.last_step)

    def moving(self, after_s: float) -> None:
        """Record that they go on, after so many seconds."""
        self._log.moving(after_s, self.run.last_step)

    def ranks_ended(self, ranks: Sequence[int], why: str) -> None:
        """Record that the session ends ranks that wait for a failed one."""
        self._log.ranks_ended({rank: self.step_of(rank) or 0 for rank in ranks}, why)

    def start(self, session: Session) -> Submission:
        """Start training on the ranks of ``session``. The run occupies them until all have finished or died."""
        code = _TRAIN.format(path=str(self.path), reloaded=RELOADED)
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
        """Record how the ranks ended, and start the branch that they stopped for, if there is one.

        ``outcomes``: the outcome that each rank returned (None: it returned none); ``dead``: rank -> why it died.
        """
        for rank, reason in dead.items():
            self.rank_died(rank, reason)
        logged: frozenset[int] = _unless_deleted(lambda: self.run.ranks_in_state(END_STATES), frozenset())
        branch = _unless_deleted(self.run.agreed_branch, None)
        self._log.end(outcomes, logged=logged)
        if branch is not None:
            branching.launch_in_thread(self.path, branch)

    def _outcome_of(self, submission: Submission, rank: int) -> Outcome | None:
        """Return the outcome of a rank; None when it died or returned nothing that can be read."""
        error = submission.error(rank)
        if isinstance(error, CellFailure):
            told = failure(error.ename, error.evalue, error.traceback)
            return Outcome(state="failed", step=self.step_of(rank) or 0, failure=told)
        return Outcome.from_result(submission.outputs[rank].result)


def _unless_deleted(read: Callable[[], _Value], otherwise: _Value) -> _Value:
    """Return ``read()``, or ``otherwise`` when the run directory was deleted or cannot be read."""
    try:
        return read()
    except RunDirectoryError:
        return otherwise
