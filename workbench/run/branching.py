"""Branching: a run writes a checkpoint and stops, and a new run with changed options goes on from there.

A branch is asked for as every other command is, by a line in the run's ``control.jsonl``, so that a button, a magic,
``Run.branch`` and another terminal do the same. The ranks answer by stopping. The process that owns them then starts
the new run (``launch_in_thread``), and whoever asked finds it by the ``resume`` of its spec (``wait_for_branch``).

A run does not know how runs are started: ``workbench.run.api`` registers that here, with ``set_launcher``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from workbench.core import background
from workbench.core.columns import Columns
from workbench.core.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.core.records import EventKind
from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.events.decode import of_kind
from workbench.run import resolve
from workbench.rundir.directory import run_directories

#: seconds for a run to reach the end of its step, write a checkpoint and stop
STOP_TIMEOUT_S = 600.0
#: seconds for the directory of the new run to appear after that
START_TIMEOUT_S = 200.0

#: starts a run with these options and returns its directory
Launcher = Callable[[dict[str, Any]], Path]
_launchers: list[Launcher] = []
#: why branches of a run did not start in this process, by directory of the run
_failures: dict[Path, str] = {}


def set_launcher(launcher: Launcher) -> None:
    """Say how this process starts runs."""
    _launchers[:] = [launcher]


def launch(options: dict[str, Any]) -> Path:
    """Start a run with these options and return its directory. Raises what the launcher raises."""
    if not _launchers:
        raise RuntimeError("no launcher is set: take Run from workbench, or import workbench.run.api")
    return _launchers[0](options)


def launch_in_thread(parent: Path, options: dict[str, Any]) -> None:
    """Start a branch of the run ``parent`` and return at once; why it did not start is printed and remembered."""
    background.thread(
        lambda: _launch(options), name=f"branch-{parent.name}", failed=lambda error: _say_why(parent, error)
    ).start()


def _launch(options: dict[str, Any]) -> None:
    launch(options)


def _say_why(parent: Path, error: BaseException) -> None:
    """Tell whoever waits for the branch of ``parent``, and the notebook, why it did not start."""
    why = str(error) if isinstance(error, (WorkbenchError, OSError)) else background.described(error)
    _failures[parent] = why
    print(f"the branch of {parent.name} did not start: {why}", file=sys.stderr, flush=True)


def check(spec: TrainSpec, settings: Mapping[str, Any], last_step: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes of a branch, texts read as flags. ``ConfigError`` for what no branch of the run could have.

    ``spec``, ``settings`` (those in force) and ``last_step`` are the run's.
    """
    for name in ("resume", "recipe"):
        if name in changes:
            raise ConfigError(f"a branch goes on with the same model from here: {name} cannot be changed", field=name)
    typed = resolve.typed(changes)
    branch = resolve.changed(spec, settings, typed)
    if branch.steps <= last_step:
        raise ConfigError(f"steps={branch.steps} are done already at step {last_step}: pass more", field="steps")
    return typed


def options_for(parent: Path, name: str, changes: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Options of a branch of the run ``parent``, called ``name``, at the checkpoint after ``step``."""
    return {"name": f"{name[:57]}-branch", **changes, "resume": f"{parent}@{step}"}


def agreed(events: Columns) -> tuple[dict[str, Any], int] | None:
    """The changes of the branch for which all ranks stopped, and the step after which; None when there is none."""
    found = list(of_kind(events, EventKind.CONTROL, "branch", rank=0))
    return (found[-1].fields, found[-1].step) if found else None


def refusal(events: Columns) -> str | None:
    """Why the ranks refused to stop for a branch; None when they did not refuse."""
    for event in of_kind(events, EventKind.REFUSED, "branch"):
        return str(event.fields.get("reason", "no reason is known"))
    return None


def wait_until_stopped(name: str, ended: Callable[[], bool], events: Callable[[], Columns]) -> None:
    """Wait until the run ``name``, asked for a branch, has ended. ``RunError`` when it refuses, or takes too long."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    has_ended = False
    while not has_ended:
        has_ended = ended()
        refused = refusal(events())
        if refused is not None:
            raise RunError(f"run {name!r} has no branch: {refused}")
        if time.monotonic() > deadline:
            raise RunError(f"run {name!r} did not stop within {STOP_TIMEOUT_S:.0f} s, so it has no branch yet")
        time.sleep(0.05)


def wait_for_branch(parent: Path, before: Collection[Path]) -> Path:
    """The directory of the branch of ``parent``, which has stopped; ``before``: runs that are no such branch.

    Raises ``RunError`` when it could not be started, or when nobody starts it.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        for path in set(run_directories()) - set(before):
            if _resumes(path).startswith(f"{parent}@"):
                return path
        if parent in _failures:
            raise RunError(f"the branch of {parent.name} did not start: {_failures.pop(parent)}")
        time.sleep(0.05)
    raise RunError(
        f"{parent.name} was stopped with a checkpoint, but the process that owns its ranks started no branch: go on "
        f"there with %dist_train --resume {parent}"
    )


def _resumes(run: Path) -> str:
    try:
        return str(read_spec_options(run / SPEC_FILE).get("resume", ""))
    except WorkbenchError:
        return ""  # its spec is still being written
