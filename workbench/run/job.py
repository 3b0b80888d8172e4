"""A run as the job that holds a session's ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from workbench.cluster.cells import Submission
from workbench.cluster.output import CellFailure
from workbench.cluster.session import Session
from workbench.core.records import END_STATES
from workbench.errors import RunDirectoryError
from workbench.events.outcome import Outcome, failure
from workbench.run import branching
from workbench.run.run import Run
from workbench.run.session_log import open_log

#: what each rank is sent; it reads everything else from the run directory, and its value is an ``Outcome``
_TRAIN = "from workbench.engine.entry import train as _train; _train({path!r})"
_Value = TypeVar("_Value")


class TrainingJob:
    """A run that trains on a session's ranks, in the process that started it; a ``workbench.cluster.job.Job``.

    It works whatever became of the run's directory: where that was deleted or cannot be read, the run counts as one
    that has logged nothing.
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
        """Whether the run directory is gone."""
        return not self.path.is_dir()

    @property
    def is_over(self) -> bool:
        """Whether the run's logs say that it has ended. A deleted run is being ended, and counts as over."""
        return _unless_deleted(lambda: self.run.status in END_STATES, True)

    def step_of(self, rank: int) -> int | None:
        """The last step that a rank finished; None before its first."""
        return _unless_deleted(lambda: self.run.step_of(rank), None)

    def failed_ranks(self) -> frozenset[int]:
        """Ranks that say in their log that they failed."""
        return _unless_deleted(lambda: self.run.ranks_in_state(("failed",)), frozenset())

    def rank_died(self, rank: int, reason: str) -> None:
        """Record that a rank's process ended; ranks that the run does not use do not matter."""
        if rank < self._ranks:
            self._log.rank_died(rank, reason)

    def ranks_ended(self, ranks: Sequence[int], why: str) -> None:
        """Record that the session ends ranks that waited for a failed one."""
        self._log.ranks_ended(ranks, why)

    def start(self, session: Session) -> Submission:
        """Let the ranks of ``session`` train, and hold them until all have finished or died."""
        submission = session.submit(_TRAIN.format(path=str(self.path)), ranks=range(self._ranks))
        session.job = self
        session.on_rank_died(self.rank_died)

        def ended(submission: Submission) -> None:
            session.forget_rank_died(self.rank_died)
            session.job = None
            self.end({rank: _outcome_of(submission, rank) for rank in submission.ranks}, submission.dead_ranks())

        submission.add_done_callback(ended)
        return submission

    def end(self, outcomes: Mapping[int, Outcome | None], dead: Mapping[int, str]) -> None:
        """Record how the ranks ended, which are free or gone now, and start the branch for which they stopped.

        ``outcomes``: how each rank says it ended (None: no answer); ``dead``: why ranks died.
        """
        for rank, reason in dead.items():
            self.rank_died(rank, reason)
        logged: frozenset[int] = _unless_deleted(lambda: self.run.ranks_in_state(END_STATES), frozenset())
        branch = _unless_deleted(self.run.agreed_branch, None)
        self._log.end(outcomes, logged=logged)
        if branch is not None:
            branching.launch_in_thread(self.path, branch)


def _unless_deleted(read: Callable[[], _Value], otherwise: _Value) -> _Value:
    try:
        return read()
    except RunDirectoryError:
        return otherwise


def _outcome_of(submission: Submission, rank: int) -> Outcome | None:
    """How a rank says it ended; None when it died, or gave no answer that can be read."""
    error = submission.error(rank)
    if isinstance(error, CellFailure):
        return Outcome(state="failed", step=0, failure=failure(error.ename, error.evalue, error.traceback))
    return Outcome.from_result(submission.outputs[rank].result)
