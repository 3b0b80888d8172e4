"""Runs that outlive the notebook: a process of its own owns the ranks of such a run, and ends with the run.

The process (``workbench.run.detached_process``) belongs to no kernel. Everything else is as always: the run directory
has the logs, commands reach the ranks by ``control.jsonl``, so any process of the user can watch and steer the run.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from workbench.cluster.session import Session
from workbench.core import background
from workbench.errors import ClusterError, RunDirectoryError, RunError
from workbench.run.resolve import Request
from workbench.run.run import Run, newest_live
from workbench.rundir import directory as run_directory
from workbench.rundir import state
from workbench.rundir.directory import CELL_FILE, NAMES_FILE

#: in the run directory: what the process printed that owns the ranks
OWNER_LOG = "owner.log"
#: seconds that the process has to end the ranks and itself
END_S = 60.0
#: an expression, so that it leaves no name on the rank
_KEEP_NAMES = "__import__('pkgutil').resolve_name('workbench.engine.state.cell_names:keep_for')({path!r})"


def start(request: Request) -> Run:
    """Start a run in a process of its own; returns when its ranks train.

    Names of ``%%dist`` cells and ``%dist_push`` that the cell uses are taken from rank 0 of this notebook's session.
    Raises ``ClusterError`` with what the process said when the ranks could not be started, and ``RunDirectoryError``;
    then, and on Ctrl-C, no process and no run directory is left.
    """
    path = run_directory.create(request.spec, request.cell, like=request.cell_folder)
    try:
        _keep_names(path)
        _start_process(path)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return Run(path)


def _keep_names(path: Path) -> None:
    session = Session.current()
    if session is None or not (path / CELL_FILE).exists() or (path / NAMES_FILE).exists():
        return
    try:
        session.check_free([0])
    except ClusterError as error:
        print(f"warning: names that the cell takes from the ranks are not handed on: {error}", file=sys.stderr)
        return
    kept = session.ask(_KEEP_NAMES.format(path=str(path)), [0]).raise_on_error()
    missing = ast.literal_eval(kept[0].result or "[]")
    if missing:
        print(f"warning: {', '.join(missing)} of the ranks cannot be handed on: define it in the cell", file=sys.stderr)


def _start_process(path: Path) -> None:
    """Start the process that owns the run, and wait until it has said how its start went."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as answers, (path / OWNER_LOG).open("ab") as log:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "workbench.run.detached_process", str(path), str(writer)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[writer],
                start_new_session=True,
            )
        except OSError as error:
            raise ClusterError(f"cannot start the process of a detached run: {error}") from error
        finally:
            os.close(writer)
        try:
            assert process.stdin is not None
            with process.stdin as stdin, suppress(BrokenPipeError):  # it has ended: its answer is missing
                stdin.write(json.dumps(sys.path).encode())
            answer = answers.readline()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if answer:
            problem: str = json.loads(answer)["problem"]
        else:
            tail = (path / OWNER_LOG).read_text(encoding="utf-8", errors="replace").strip()[-2000:]
            problem = f"the process that was to own the ranks ended with exit code {process.wait()}: {tail}"
        if problem:
            process.wait()
            raise ClusterError(problem)
    background.thread(  # without it, the process would stay as a zombie
        process.wait, name=f"detached-{path.name}", failed=background.warner("the end of a detached run was not seen")
    ).start()


def attach(name: str | Path | None = None) -> Run:
    """The run of that name or directory; by default the newest detached run that trains.

    Raises ``RunDirectoryError`` when there is no such run, or when it belongs to another user: its directory is
    private (mode 0700), and who attaches can steer it.
    """
    run = _newest_detached() if name is None else Run(name)
    uid = run.path.stat().st_uid
    if uid != os.getuid():
        raise RunDirectoryError(f"{run.path} belongs to user {uid}: only that user can attach to it")
    return run


def _newest_detached() -> Run:
    found = newest_live(is_detached)
    if found is None:
        raise RunDirectoryError(
            f"no detached run trains in {run_directory.home()}: start one with %dist_train --detach, or name a run "
            "(%dist_runs lists them)"
        )
    return found


def is_detached(path: Path) -> bool:
    """Whether a process of its own owns the ranks of the run, so that it outlives the notebook."""
    owner = state.owner_if_known(path)
    return owner is not None and owner.detached


def told(run: Run) -> str:
    """In a line, which run this is, and with what its ranks end."""
    about = f"{run.name}: {run.plan.describe()}, {run.status} at step {run.last_step}"
    owner = state.owner_if_known(run.path)
    if run.ended() or owner is None:
        return about
    if owner.detached:
        return f"{about}, in process {owner.pid} of its own"
    where = "this process" if owner.is_this_process else f"process {owner.pid} on {owner.host}"
    return f"{about}; its ranks end with {where}, which started it"


def end(run: Run) -> None:
    """End the processes of a detached run at once: its ranks, rank server and controller. Nothing is saved.

    Returns when they have ended; does nothing when they had. Raises ``RunError`` for a run that a kernel or another
    host owns, or when the process has not ended after ``END_S`` seconds (it is killed then, and its ranks end with it).
    """
    owner = state.owner_if_known(run.path)
    if owner is None or not owner.detached:
        raise RunError(f"run {run.name!r} is not detached: its ranks belong to the kernel that started it")
    if not owner.can_be_looked_for:
        raise RunError(f"run {run.name!r} runs on host {owner.host}: end it there")
    process = owner.process()
    if process is None:
        return
    with suppress(psutil.NoSuchProcess):
        process.terminate()
    deadline = time.monotonic() + END_S
    while owner.process() is not None:
        if time.monotonic() > deadline:
            with suppress(psutil.NoSuchProcess):
                process.kill()
            raise RunError(f"run {run.name!r}: its process {owner.pid} did not end within {END_S:g} s and was killed")
        time.sleep(0.05)
