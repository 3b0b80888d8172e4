"""Branching: a run writes a checkpoint and stops, and a new run with changed options continues from that checkpoint.

A branch is requested like every other command, by a line in the run's ``control.jsonl``, so a button, a magic,
``Run.branch`` and another terminal all work the same way. The ranks respond by stopping. The process that owns them
then starts the new run (``launch_in_thread``), and the process that made the request finds the new run by the
``resume`` option of its spec (``wait_for_branch``).

This module does not import the code that starts runs; ``workbench.run.api`` registers it with ``set_launcher``.
"""

from __future__ import annotations

import re
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

#: seconds that a run has to finish its step, write a checkpoint and stop
STOP_TIMEOUT_S = 600.0
#: seconds from then until the directory of the new run must exist
START_TIMEOUT_S = 200.0

#: a function that starts a run with the given options and returns its directory
Launcher = Callable[[dict[str, Any]], Path]
_launchers: list[Launcher] = []
#: directory of a run -> why its branch could not be started in this process
_failures: dict[Path, str] = {}
#: directory of a run -> that of the branch that this process has started in its place
_started: dict[Path, Path] = {}


def set_launcher(launcher: Launcher) -> None:
    """Register the function that starts runs in this process."""
    _launchers[:] = [launcher]


def launch(options: dict[str, Any]) -> Path:
    """Start a run with these options and return its directory.

    Raises what the launcher raises, and ``RuntimeError`` when no launcher is registered.
    """
    if not _launchers:
        raise RuntimeError("no launcher is registered: import Run from workbench, or import workbench.run.api")
    return _launchers[0](options)


def launch_in_thread(parent: Path, options: dict[str, Any]) -> None:
    """Start a branch of the run ``parent`` in a thread and return at once.

    When the start fails, the reason is printed and kept for ``wait_for_branch``.
    """

    def start() -> None:
        _started[parent] = launch(options)

    background.thread(start, name=f"branch-{parent.name}", failed=lambda error: _report_failure(parent, error)).start()


def started_here(parent: Path) -> Path | None:
    """Wait for the branch that this process, which owns the ranks, starts in place of the run ``parent``.

    ``parent`` has ended for that branch. Returns the branch's directory; None when it could not be started, which is
    printed, or not within ``START_TIMEOUT_S`` seconds.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while parent not in _started and parent not in _failures and time.monotonic() < deadline:
        time.sleep(0.05)
    return _started.get(parent)


def _report_failure(parent: Path, error: BaseException) -> None:
    """Print why the branch of ``parent`` did not start, and keep the reason for ``wait_for_branch``."""
    reason = str(error) if isinstance(error, (WorkbenchError, OSError)) else background.described(error)
    print(f"the branch of {parent.name} did not start: {reason}", file=sys.stderr, flush=True)
    _failures[parent] = reason  # who waits for the branch goes on now


def check(spec: TrainSpec, settings: Mapping[str, Any], last_step: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changed options of a branch, with texts converted as flags are.

    ``spec``, ``settings`` (the values in force) and ``last_step`` are those of the run that is branched. Raises
    ``ConfigError`` for changes that no branch of this run can have.
    """
    for name in ("resume", "recipe"):
        if name in changes:
            raise ConfigError(
                f"{name} cannot be changed in a branch, which continues the same model from this run's checkpoint: "
                f"leave {name} out, or start a new run with %dist_train",
                field=name,
            )
    typed = resolve.typed(changes)
    branch = resolve.changed(spec, settings, typed)
    if 0 < branch.steps <= last_step:
        raise ConfigError(
            f"the run is at step {last_step}, so a branch with steps={branch.steps} would have no step to train: pass "
            f"steps greater than {last_step}",
            field="steps",
        )
    return typed


def options_for(parent: Path, name: str, changes: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return the options of a branch of the run ``parent`` (called ``name``) from its checkpoint of step ``step``."""
    return {"name": f"{name[:57]}-branch", **changes, "resume": f"{parent}@{step}"}


def name_under(name: str, plan: str) -> str:
    """What a run is called that goes on under ``plan``: ``"first"``, ``"tp2 pp2"`` -> ``"first-tp2-pp2"``."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", plan).strip("-")
    return f"{name[:40]}-{words}"[:64]


def agreed(events: Columns) -> tuple[dict[str, Any], int] | None:
    """Return the changed options of the branch for which all ranks stopped, and their last step; None without one."""
    found = list(of_kind(events, EventKind.CONTROL, "branch", rank=0))
    return (found[-1].fields, found[-1].step) if found else None


def refusal(events: Columns) -> str | None:
    """Return why the ranks refused to stop for a branch; None when they did not refuse."""
    for event in of_kind(events, EventKind.REFUSED, "branch"):
        return str(event.fields.get("reason", "the reason is unknown"))
    return None


def wait_until_stopped(name: str, ended: Callable[[], bool], events: Callable[[], Columns]) -> None:
    """Wait until the run ``name``, which was asked to stop for a branch, has ended.

    Raises ``RunError`` when its ranks refuse, or when it has not ended after ``STOP_TIMEOUT_S`` seconds.
    """
    deadline = time.monotonic() + STOP_TIMEOUT_S
    has_ended = False
    while not has_ended:
        has_ended = ended()
        refused = refusal(events())
        if refused is not None:
            raise RunError(f"run {name!r} refused the branch: {refused}")
        if time.monotonic() > deadline:
            raise RunError(
                f"run {name!r} did not stop within {STOP_TIMEOUT_S:.0f} s, so its branch was not started; it starts "
                "when the run stops"
            )
        time.sleep(0.05)


def wait_for_branch(parent: Path, before: Collection[Path]) -> Path:
    """Wait for the branch of ``parent``, a run that has stopped, and return the branch's directory.

    ``before``: run directories that existed before the request. Raises ``RunError`` when the branch could not be
    started, or has no directory after ``START_TIMEOUT_S`` seconds.
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
        f"{parent.name} was stopped with a checkpoint, but the process that owns its ranks started no branch: "
        f"continue in that process with %dist_train --resume {parent}"
    )


def _resumes(run: Path) -> str:
    try:
        return str(read_spec_options(run / SPEC_FILE).get("resume", ""))
    except WorkbenchError:
        return ""  # its spec is still being written
