"""Starting a run: checks the options, makes the run directory, starts ranks if none are up, and starts training."""

from __future__ import annotations

import contextlib
import pkgutil
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench.cluster.hosts.machine import describe_host
from workbench.cluster.hosts.placement import CPU, Placement, default_ranks, place
from workbench.cluster.session import Session
from workbench.cluster.startup_notice import print_when_slow
from workbench.core.config import TrainSpec
from workbench.errors import ClusterError, RunError
from workbench.run import detached
from workbench.run.job import TrainingJob
from workbench.run.peer_watch import PeerWatch
from workbench.run.resolve import Request, resolve
from workbench.run.run import Run
from workbench.rundir import directory as run_directory

#: the plan that the planner chooses
AUTO = "auto"
#: told what is trained, and how many of all steps are done
Progress = Callable[[str, int, int], object]
#: seconds after which a training that nobody waits for any more is interrupted, and in which it then ends
_INTERRUPT_AFTER_S = 5.0


def train(
    options: Mapping[str, Any], *, config: str | Path | None = None, cell: str | None = None, detach: bool = False
) -> Run:
    """Start a run and return it at once.

    ``options``: names of ``TrainSpec.options()`` -> values; None counts as not given; ``plan`` "auto" is the planner's
    first choice (``workbench.plans``), which is printed with the reason. ``config``: a spec file, which
    ``options`` override. ``cell``: the source of a cell that defines the model; by default the cell beside the spec
    file, or that of the run that is resumed. Ranks are started when none are up. ``detach``: the run gets ranks and a
    process of its own, and goes on when this process ends (``workbench.run.detached``).

    Raises ``ConfigError``, ``SchemaError``, ``RanksBusyError`` or ``RunDirectoryError`` before any rank is used, and
    ``ClusterError`` when the ranks cannot be started. After an error no run directory is left.
    """
    if options.get("plan") == AUTO:
        options = _with_chosen_plan(options, config, cell)
    if detach:
        most = default_ranks(describe_host())
        request = resolve(options, config=config, cell=cell, default_ranks=most)
        place(request.spec.plan.ranks, describe_host())
        _tell(request)
        return detached.start(request)
    request = resolved(options, config=config, cell=cell)
    _tell(request)
    is_up = Session.current() is not None
    _place_of(request.spec)  # refuses what this machine has no place for
    with contextlib.ExitStack() as undo:
        path = run_directory.create(request.spec, request.cell, like=request.cell_folder)
        undo.callback(shutil.rmtree, path, ignore_errors=True)
        session = session_for(request.spec)
        if not is_up:
            undo.callback(session.down)
        begin(Run(path), session)
        undo.pop_all()
    return Run(path)


def _tell(request: Request) -> None:
    for line in request.told:
        print(line)


def begin(run: Run, session: Session) -> None:
    """Let the ranks of ``session`` train ``run``, whose directory has been made."""
    _start(TrainingJob(run, _restart), session)


def _start(job: TrainingJob, session: Session) -> None:
    PeerWatch(session, job, job.start(session))


def _restart(job: TrainingJob) -> None:
    """Start a run again, on the ranks that are up and on new ones in the place of those that died. Raises
    ``ClusterError`` when a person has ended the session meanwhile."""
    session = Session.current()
    if session is None or session.is_down:
        raise ClusterError("its ranks were ended meanwhile")
    _start(job, session_for(job.run.spec))


def resolved(options: Mapping[str, Any], *, config: str | Path | None = None, cell: str | None = None) -> Request:
    """Resolve the options of a run for the ranks that are up, or that this machine has, and end cells of which a rank
    has died. Arguments and errors: see ``train``; ``RanksBusyError`` where the ranks are in use."""
    session = Session.current()
    up = 0 if session is None else session.n
    most = up or default_ranks(describe_host())
    request = resolve(options, config=config, cell=cell, default_ranks=most)
    if session is not None:
        session.free(range(request.spec.plan.ranks))
    return request


def session_for(spec: TrainSpec) -> Session:
    """The ranks that are up if they can train ``spec``, with those that are missing, or else new ones. Raises
    ``ClusterError`` when they cannot be started."""
    session, plan = Session.current(), spec.plan
    if session is None or not session.kind.can_train(plan.framework):
        return _start_ranks(_place_of(spec), plan.framework, again=session is not None)
    if session.n < plan.ranks or session.dead:
        return _complete(session, max(plan.ranks, session.n))
    return session


def _place_of(spec: TrainSpec) -> Placement:
    """Where ranks are, or would be started. ``ConfigError`` when this machine has no place for those of ``spec``."""
    session = Session.current()
    fits = session is not None and session.n >= spec.plan.ranks
    return session.placement if session is not None and fits else place(spec.plan.ranks, describe_host())


def _complete(session: Session, ranks: int) -> Session:
    """The session with ``ranks`` ranks, those that died and those that were missing started. Says what it did."""
    bound = [binding.device for binding in session.placement.bindings]
    up = session.n - len(session.dead)
    print(f"{'1 rank is' if up == 1 else f'{up} ranks are'} up and the run needs {ranks}: starting the others")
    with print_when_slow():
        whole = Session.up(ranks, devices="cpu" if set(bound) == {CPU} else None)
    if whole is session:
        print(whole.renewal)
    else:
        print("warning: all ranks were restarted: the variables of cells that ran there are lost", file=sys.stderr)
    return whole


def _with_chosen_plan(options: Mapping[str, Any], config: str | Path | None, cell: str | None) -> dict[str, Any]:
    """``options`` with the planner's first choice as their plan. Prints which it is, and why."""
    choose = pkgutil.resolve_name("workbench.run.planning.plans:choose")  # it trains plans too, by this module's parts
    others = {name: value for name, value in options.items() if name != "plan"}
    chosen, why = choose(others, config=config, cell=cell)
    print(f"--plan {AUTO}: {why}")
    return {**others, **chosen}


def _start_ranks(placement: Placement, framework: str, *, again: bool) -> Session:
    """Start ranks. ``again``: restart those that are up, in the same places, from a warm process of ``framework``."""
    if again:
        print(f"restarting the ranks for framework {framework}: the variables of cells that ran there are lost")
    with print_when_slow():
        session = Session.start(placement, framework=framework)
    if not again:
        for text in session.warnings:
            print(f"warning: {text}", file=sys.stderr)
    return session


def counting(progress: Progress | None, what: str, before: int, steps: int) -> Callable[[int], object]:
    """A function that tells ``progress`` how many of all ``steps`` are done, given those of the training ``what``;
    ``before``: those of the trainings before it."""
    return lambda done: None if progress is None else progress(what, before + done, steps)


def follow(run: Run, session: Session, tell: Callable[[int], object]) -> None:
    """Wait until a training on the ranks of ``session`` is over, and tell its last step meanwhile. An interrupt ends
    the training first: after its step, or at once where that takes too long."""
    try:
        while not run.ended():
            tell(run.last_step)
            time.sleep(0.05)
    except BaseException:
        _end(run, session)
        raise


def _end(run: Run, session: Session) -> None:
    with contextlib.suppress(RunError):  # it has just ended by itself
        run.stop("no-checkpoint")
    for act in (lambda: None, lambda: session.interrupt(range(run.plan.ranks))):
        act()
        deadline = time.monotonic() + _INTERRUPT_AFTER_S
        while not run.ended() and time.monotonic() < deadline:
            time.sleep(0.05)
