"""Why ranks do not go on: of a run, or of the ranks of a session. Works from any process of the same user and host."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from workbench.cluster.base import private_directory
from workbench.cluster.session import Session
from workbench.core.live import rank_row
from workbench.core.records import EventKind
from workbench.diagnosis.causes import Cause
from workbench.diagnosis.diagnose import diagnose
from workbench.diagnosis.diagnosis import Diagnosis
from workbench.diagnosis.view import look, read
from workbench.errors import ClusterError, RunError
from workbench.events.decode import of_kind
from workbench.events.outcome import failure_of
from workbench.run.job import TrainingJob
from workbench.run.run import Run
from workbench.rundir import state


def why(run: Run | str | Path | None = None) -> Diagnosis:
    """Tell where each rank is, who waits for whom, and what keeps them from going on.

    ``run``: a run, its name or its directory; None: the ranks of this session, else the newest ranks of this user on
    this host. Of a run that has ended, tells how. Takes about a second, and changes nothing. Raises ``RunError`` for a
    run whose ranks are on another host, and ``ClusterError`` when no ranks are up.
    """
    if run is not None:
        return why_run(run if isinstance(run, Run) else Run(run))
    session = Session.current()
    if session is not None:
        return why_session(session)
    directory = newest_ranks()
    return diagnose(look(directory, rank_row.ranks_in(directory), {}))


def why_run(run: Run) -> Diagnosis:
    """Tell why the ranks of a run do not go on, or why it failed. Errors: see ``why``."""
    status = run.status
    if state.ended(status):
        return _of_the_end(run, status)
    session = Session.current()
    if session is not None and isinstance(session.job, TrainingJob) and session.job.path == run.path:
        return why_session(session)  # also before its ranks have logged where they are
    directory = live_directory(run)
    if directory is None:
        raise RunError(
            f"the ranks of run {run.name!r} cannot be seen from here: run this on their host, as the same user"
        )
    return diagnose(look(directory, range(run.plan.ranks), deaths_of(run)), run.plan.mesh)


def _of_the_end(run: Run, status: str) -> Diagnosis:
    """What a run ended of, and the last stall that was told before."""
    rows = run.event_rows()
    told = [event.fields.get("sentence", "") for event in of_kind(rows, EventKind.RANK, "stalled")]
    before = f" (before that: {told[-1]})" if told else ""
    first = failure_of(rows)
    if status != "failed" or first is None:
        return Diagnosis(
            cause=Cause.NOTHING, sentence=f"run {run.name!r} has ended: {status} at step {run.last_step}{before}"
        )
    died = deaths_of(run)
    return Diagnosis(
        cause=Cause.DEAD_PEER if died else Cause.ERROR,
        sentence=f"run {run.name!r} failed at step {run.last_step} on {first.who}: {first.message}{before}",
        missing=tuple(sorted(died)) or tuple(first.ranks),
        advice="%dist_up starts new ranks in place of those that died" if died else "",
    )


def why_session(session: Session) -> Diagnosis:
    """Tell why the ranks of a session do not go on, whether they train or run a cell."""
    if isinstance(session.job, TrainingJob):
        run = session.job.run
        return diagnose(look(session.directory, range(run.plan.ranks), session.dead), run.plan.mesh)
    return diagnose(look(session.directory, range(session.n), session.dead))


def live_directory(run: Run) -> Path | None:
    """Return the directory with the rows of a run's ranks; None when they are not on this host, or have ended."""
    for event in of_kind(run.event_rows(), EventKind.STATE, "starting"):
        directory = Path(str(event.fields.get("live") or "-"))
        if read(directory, 0) is not None:
            return directory
    return None


def deaths_of(run: Run) -> Mapping[int, str]:
    """Return the ranks of a run that died -> why."""
    found = of_kind(run.event_rows(), EventKind.RANK, "died")
    return {int(event.fields["rank"]): str(event.fields.get("reason", "")) for event in found if "rank" in event.fields}


def newest_ranks() -> Path:
    """Return the directory of the newest ranks of this user on this host. Raises ``ClusterError`` without any."""
    directories = sessions_of_this_user()
    if not directories:
        raise ClusterError("no ranks are up on this host: %dist_up -n 2 starts some, or name a run")
    return max(directories, key=lambda each: each.stat().st_mtime)


def sessions_of_this_user() -> list[Path]:
    """Return the directories of rank servers of this user on this host that have ranks."""
    found = []
    for directory in private_directory.of_this_user(private_directory.default_parent()):
        with suppress(OSError):  # removed meanwhile
            if any(read(directory, rank) is not None for rank in rank_row.ranks_in(directory)):
                found.append(directory)
    return found
