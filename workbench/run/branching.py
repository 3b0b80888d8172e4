"""Branching: a run writes a checkpoint and stops, and the process that owns its ranks starts a new one from there.

A branch is a command like the others, so a button, a magic, ``Run.branch`` and another terminal ask for it alike. The
ranks answer by stopping. The owner then starts the new run in a thread (``start_asked``), and whoever asked finds it
by the ``resume`` of its spec. ``workbench.run.api`` registers how a run is started: nothing here launches by itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from workbench.core import background
from workbench.core.columns import Columns
from workbench.core.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.core.records import EventKind
from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.events.decode import of_kind
from workbench.run import resolve
from workbench.rundir import checkpoints
from workbench.rundir import directory as run_directory
from workbench.rundir.state import ENDED

#: seconds for the parent to reach its boundary, write a checkpoint and end, and for the new run's directory to appear
STOP_TIMEOUT_S = 600.0
START_TIMEOUT_S = 200.0


class Parent(Protocol):
    """The run that is branched; ``workbench.Run`` is one."""

    path: Path

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def spec(self) -> TrainSpec:
        """Its spec."""

    @property
    def status(self) -> str:
        """Its state."""

    @property
    def last_step(self) -> int:
        """The last step that it finished."""

    def ended(self) -> bool:
        """Whether it is over and its ranks are free."""

    def ask(self, name: str, value: Any = None) -> None:
        """Write a command."""

    def settings(self) -> dict[str, Any]:
        """The values in force."""

    def _events(self) -> Columns:
        """Its events."""


#: starts a run with these options (those of ``TrainSpec``, flat) and returns it
Launcher = Callable[[dict[str, Any]], Any]

_launchers: list[Launcher] = []
#: new runs that this process started, by directory, and why branches of a run did not start
started: dict[Path, Any] = {}
failures: dict[Path, str] = {}


def register(launcher: Launcher) -> None:
    """Say how a run is started in this process."""
    _launchers[:] = [launcher]


def _launch(options: dict[str, Any]) -> Any:
    if not _launchers:
        raise RunError("nothing here can start a run: import Run from workbench")
    return _launchers[0](options)


def options_for(run: Parent, changes: dict[str, Any], step: int) -> dict[str, Any]:
    """Options of the new run, from checked changes."""
    return {"name": f"{run.name[:57]}-branch", **changes, "resume": f"{run.path}@{step}"}


def check(run: Parent, changes: dict[str, Any]) -> dict[str, Any]:
    """Changes with texts read as the flags of their names read them. ``ConfigError`` for what no new run could have."""
    for name in ("resume", "recipe"):
        if name in changes:
            raise ConfigError(f"a branch goes on with the same model from here: {name} cannot be changed", field=name)
    typed = resolve.typed(changes)
    spec = resolve.changed(run.spec, run.settings(), typed)
    if spec.steps <= run.last_step:
        raise ConfigError(f"steps={spec.steps} are done already at step {run.last_step}: pass more", field="steps")
    return typed


def request(run: Parent, changes: dict[str, Any]) -> None:
    """Ask for a branch and return at once, as a button does; the owner of the ranks starts it."""
    typed = check(run, changes)
    if run.status in ENDED:
        _launch(options_for(run, typed, checkpoints.step_of(checkpoints.find(run.path))))
    else:
        run.ask("branch", typed)


def branch(run: Parent, changes: dict[str, Any], open_run: Callable[[Path], Any]) -> Any:
    """Ask for a branch, wait until it has started, and return it; ``open_run`` opens one that another process owns."""
    typed = check(run, changes)
    if run.status in ENDED:
        return _launch(options_for(run, typed, checkpoints.step_of(checkpoints.find(run.path))))
    before = set(run_directory.run_directories())
    run.ask("branch", typed)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not run.ended():
        _raise_if_refused(run)
        if time.monotonic() > deadline:
            raise RunError(f"run {run.name!r} did not stop within {STOP_TIMEOUT_S:.0f} s, so it has no branch yet")
        time.sleep(0.05)
    _raise_if_refused(run)
    return _await_start(run, before, open_run)


def _raise_if_refused(run: Parent) -> None:
    for event in of_kind(run._events(), EventKind.REFUSED, "branch"):
        raise RunError(f"run {run.name!r} has no branch: {event.fields.get('reason', 'no reason is known')}")


def _await_start(run: Parent, before: set[Path], open_run: Callable[[Path], Any]) -> Any:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        for path in set(run_directory.run_directories()) - before:
            if _resume_of(path).startswith(f"{run.path}@"):
                return started.get(path) or open_run(path)
        if run.path in failures:
            raise RunError(f"the branch of run {run.name!r} did not start: {failures.pop(run.path)}")
        time.sleep(0.05)
    raise RunError(
        f"run {run.name!r} was stopped with a checkpoint, but the session that owns its ranks started no branch: go on "
        f"there with %dist_train --resume {run.path}"
    )


def _resume_of(path: Path) -> str:
    try:
        return str(read_spec_options(path / SPEC_FILE).get("resume", ""))
    except WorkbenchError:
        return ""  # its spec is still being written


def start_asked(run: Parent, changes: dict[str, Any], step: int) -> None:
    """Start the branch that was asked for, in a thread: the owner calls this when the run's ranks are free."""
    background.thread(
        lambda: _start_here(run, changes, step), name=f"branch-{run.name}", failed=lambda error: _fail(run, error)
    ).start()


def asked_branch(run: Parent) -> tuple[dict[str, Any], int] | None:
    """The changes and the step of the branch that all ranks agreed on; None when there is none."""
    found = list(of_kind(run._events(), EventKind.CONTROL, "branch", rank=0))
    return (found[-1].fields, found[-1].step) if found else None


def _start_here(run: Parent, changes: dict[str, Any], step: int) -> None:
    new = _launch(options_for(run, changes, step))
    started[new.path] = new


def _fail(run: Parent, error: BaseException) -> None:
    """Tell whoever waits for the branch of ``run``, and the notebook, why it did not start."""
    why = str(error) if isinstance(error, (WorkbenchError, OSError)) else background.described(error)
    failures[run.path] = why
    print(f"the branch of run {run.name!r} did not start: {why}", file=sys.stderr, flush=True)
