"""Branching: a run writes a checkpoint and stops, and the session that owns its ranks starts a new one from there.

A branch is a command like the others, so a button, a magic, ``Run.branch`` and another terminal ask for it alike. The
ranks answer by stopping; the owner then starts the new run from a thread of its own (``start_asked``), and whoever
asked finds it by the ``resume`` of its spec.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from workbench.core import background
from workbench.core.config import SPEC_FILE, read_spec_options
from workbench.core.flags import FLAGS
from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.rundir import checkpoints
from workbench.rundir import directory as run_directory
from workbench.rundir.state import ENDED

if TYPE_CHECKING:
    from workbench.run.run import Run

#: seconds for the parent to reach its boundary, write a checkpoint and end, and for the new run's directory to appear
STOP_TIMEOUT_S = 600.0
START_TIMEOUT_S = 200.0


def options_for(run: Run, changes: dict[str, Any], step: int) -> dict[str, Any]:
    """Options of the new run; checked, ``ConfigError``."""
    return {"name": f"{run.name[:57]}-branch", **typed(changes), "resume": f"{run.path}@{step}"}


def typed(changes: dict[str, Any]) -> dict[str, Any]:
    """Texts as the flags of the same name read them. ``ConfigError`` for one that is no such value."""
    kinds = {flag.option: flag.kind or (lambda text: {"true": True, "false": False}[text.lower()]) for flag in FLAGS}
    found = {}
    for name, value in changes.items():
        try:
            found[name] = kinds[name](value) if isinstance(value, str) and name in kinds else value
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{name}={value!r} is no value for --{name.replace('_', '-')}", field=name) from error
    return found


def check(run: Run, changes: dict[str, Any]) -> None:
    """Refuse what the new run could not have. ``ConfigError``."""
    for name in ("resume", "recipe"):
        if name in changes:
            raise ConfigError(f"a branch goes on with the same model from here: {name} cannot be changed", field=name)
    spec = run.spec.replace(**changes)
    if spec.steps <= run.last_step:
        raise ConfigError(f"steps={spec.steps} are done already at step {run.last_step}: pass more", field="steps")


def request(run: Run, changes: dict[str, Any]) -> None:
    """Ask for a branch and return at once, as a button does; the session that owns the ranks starts it."""
    changes = typed(changes)
    check(run, changes)
    if run.status in ENDED:
        _start(options_for(run, changes, checkpoints.step_of(checkpoints.find(run.path))))
    else:
        run.ask("branch", changes)


def branch(run: Run, changes: dict[str, Any]) -> Run:
    """What ``Run.branch`` does."""
    changes = typed(changes)
    check(run, changes)
    if run.status in ENDED:
        step = checkpoints.step_of(checkpoints.find(run.path))
        return _start(options_for(run, changes, step))
    before = set(run_directory.run_directories())
    run.ask("branch", changes)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not run.ended():
        _raise_if_refused(run)
        if time.monotonic() > deadline:
            raise RunError(f"run {run.name!r} did not stop within {STOP_TIMEOUT_S:.0f} s, so it has no branch yet")
        time.sleep(0.05)
    _raise_if_refused(run)
    return _found(run, before)


def _raise_if_refused(run: Run) -> None:
    events = run._events()
    for i in ((events["kind"] == "refused") & (events["name"] == "branch")).nonzero()[0]:
        raise RunError(f"run {run.name!r} has no branch: {json.loads(events['value'][i])['reason']}")


def _found(run: Run, before: set[Any]) -> Run:
    from workbench.run.run import Run as OpenedRun

    wanted = f"{run.path}@"
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        for path in set(run_directory.run_directories()) - before:
            if _resume_of(path).startswith(wanted):
                return started.get(path) or OpenedRun(path)
        if run.path in failures:
            raise RunError(f"the branch of run {run.name!r} did not start: {failures.pop(run.path)}")
        time.sleep(0.05)
    raise RunError(
        f"run {run.name!r} was stopped with a checkpoint, but the session that owns its ranks started no branch: go on "
        f"there with %dist_train --resume {run.path}"
    )


def _resume_of(path: Any) -> str:
    try:
        return str(read_spec_options(path / SPEC_FILE).get("resume", ""))
    except WorkbenchError:
        return ""  # its spec is still being written


#: new runs that this process started, by directory, and why branches of a run did not start
started: dict[Any, Run] = {}
failures: dict[Any, str] = {}


def start_asked(run: Run, changes: dict[str, Any], step: int) -> None:
    """Called by the session when a run's ranks are free: start the branch that was asked for, in a thread."""
    background.thread(
        lambda: _start_here(run, changes, step), name=f"branch-{run.name}", failed=lambda error: _fail(run, error)
    ).start()


def asked_branch(run: Run) -> tuple[dict[str, Any], int] | None:
    """The changes and the step of the branch that all ranks agreed on; None when there is none."""
    events = run._events()
    found = ((events["kind"] == "control") & (events["name"] == "branch") & (events["rank"] == 0)).nonzero()[0]
    if not found.size:
        return None
    last = found[-1]
    return json.loads(events["value"][last]), int(events["step"][last])


def _start_here(run: Run, changes: dict[str, Any], step: int) -> None:
    new = _start(options_for(run, changes, step))
    started[new.path] = new


def _fail(run: Run, error: BaseException) -> None:
    """Whoever waits for the branch of ``run`` is told why it did not start, and so is the notebook."""
    why = str(error) if isinstance(error, (WorkbenchError, OSError)) else background.described(error)
    failures[run.path] = why
    print(f"the branch of run {run.name!r} did not start: {why}", file=sys.stderr, flush=True)


def _start(options: dict[str, Any]) -> Run:
    from workbench.run import launch

    return launch.train(options)
