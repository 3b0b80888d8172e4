"""Starting a run: check everything, make its directory, bring ranks up when there are none, tell them to train."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from workbench.cluster.cells import Submission
from workbench.cluster.hosts.machine import describe_host
from workbench.cluster.hosts.placement import CPU, default_ranks
from workbench.cluster.hosts.specs import plan_ranks
from workbench.cluster.output import CellFailure
from workbench.cluster.session import Session
from workbench.cluster.startup_notice import said_when_slow
from workbench.events.outcome import Outcome, failure
from workbench.run.branching import start_asked
from workbench.run.occupant import RunOccupant
from workbench.run.peer_watch import PeerWatch
from workbench.run.resolve import check_cell, check_ranks, resolve, resumed
from workbench.run.run import Run
from workbench.rundir import directory as run_directory

#: what each rank is told, as text; it reads everything else from the run directory, and its value is an ``Outcome``
_TRAIN = "from workbench.engine.entry import train as _train; _train({path!r})"


def train(options: dict[str, Any], *, cell: str | None = None) -> Run:
    """Start a run with these options (flat names of ``TrainSpec``; None means default) and return it at once.

    ``cell`` is the source of a cell that defines the model. Ranks are brought up when there are none. Raises, before
    any rank does anything, ``ConfigError``, ``RanksBusyError`` or ``RunDirectoryError``; and ``ClusterError`` when
    ranks cannot be brought up. Nothing is left behind then.
    """
    options, cell = resumed(options, cell)
    session = Session.current()
    ranks_up = session.n if session is not None else 0
    spec = resolve(options, ranks_up=ranks_up, default_ranks=_default_ranks(), cell=cell)
    if session is not None:
        session.check_free(range(spec.plan.ranks))
    check_ranks(spec, ranks_up=ranks_up)
    if cell is not None:
        check_cell(cell)
    # refuses more ranks than GPUs before anything is made
    placement = plan_ranks(spec.plan.ranks) if session is None else None
    path = run_directory.create(spec, cell)
    own = session is None
    try:
        if session is None:
            with said_when_slow():
                session = Session.up(placement=placement, framework=spec.plan.framework)
            for text in session.warnings:
                print(f"warning: {text}", file=sys.stderr)
        elif not session.kind.trains(spec.plan.framework):
            session = _started_anew(session, spec.plan.framework)
        return _start(session, Run(path))
    except BaseException:
        if own and session is not None:
            session.down()
        shutil.rmtree(path, ignore_errors=True)
        raise


def _started_anew(session: Session, framework: str) -> Session:
    """As many ranks on the same devices, from a warm process of the framework."""
    print(f"the ranks are started anew for framework {framework}: names that cells defined on them are gone")
    devices = [binding.device for binding in session.placement.bindings]
    with said_when_slow():
        return Session.up(session.n, devices=CPU if CPU in devices else devices, framework=framework)


def _default_ranks() -> int:
    return default_ranks(describe_host())


def _start(session: Session, run: Run) -> Run:
    run.attach()
    submission = session.submit(_TRAIN.format(path=str(run.path)), ranks=range(run.plan.ranks))
    session.occupant = occupant = RunOccupant(run)
    session.on_rank_died(run.rank_died)

    def ended(submission: Submission) -> None:
        for rank, reason in submission.dead_ranks().items():
            run.rank_died(rank, reason)
        session.forget_rank_died(run.rank_died)
        session.occupant = None
        occupant.free({rank: _answer(submission, rank) for rank in submission.ranks})
        branch = occupant.asked_branch()
        if branch is not None:
            start_asked(run, *branch)

    submission.add_done_callback(ended)
    PeerWatch(session, occupant, submission)
    return run


def _answer(submission: Submission, rank: int) -> Outcome | None:
    """What a rank said about its end; None when it died, or said nothing that can be read."""
    error = submission.error(rank)
    if isinstance(error, CellFailure):
        told = failure(error.ename, error.evalue, error.traceback)
        return Outcome(state="failed", step=0, failure=told)
    return Outcome.from_result(submission.outputs[rank].result)
