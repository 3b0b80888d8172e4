"""``Run``: reads and controls one run, from any process: ``Run("runs/...")``.

The methods that control a run check the command and write it as a line of ``control.jsonl``. The ranks apply it after
their current step and log an event (``Run.events()``: kind ``control``, or ``refused`` with the reason). These methods
raise ``RunError`` when the run has ended, and ``ConfigError`` for a value that is not allowed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core import controls
from workbench.core.columns import Columns
from workbench.core.controls import BEST, NEWEST
from workbench.core.records import EventKind
from workbench.core.rules.expressions import Expression
from workbench.core.user_code.cell_source import logged_names
from workbench.errors import ConfigError, RunError
from workbench.events.outcome import FirstFailure, failure_of
from workbench.run import branching
from workbench.run.reader import RunReader
from workbench.run.session_log import log_of
from workbench.rundir import checkpoints, state
from workbench.rundir.commands import new_command, write_commands
from workbench.rundir.directory import CELL_FILE, recall_algorithm, run_directories, runs_with_spec
from workbench.telemetry.derive import with_rows

if TYPE_CHECKING:
    from workbench.diagnosis.diagnosis import Diagnosis
    from workbench.run.replay import Replay
    from workbench.verification.result import Verification


class Run(RunReader):
    """One training run. ``name`` is a run directory, a run's name, or None for the newest run.

    Raises ``RunDirectoryError`` when there is no such run, ``SchemaError`` when a newer version wrote it.
    """

    @property
    def status(self) -> str:
        """``starting``, ``running``, ``paused``, ``restarting``, ``finished``, ``stopped``, ``failed`` or ``lost``."""
        session_log = log_of(self.path)
        free = session_log is not None and session_log.ranks_are_free.is_set()  # read before the logs are read
        logged = state.state_of(self._events(), self.plan.ranks)
        if free and not state.ended(logged):
            return "failed"  # the ranks are free again but could not log how the run ended
        return logged if session_log is not None else state.present_state(logged, self.path)

    def wait(self, timeout: float | None = None) -> Run:
        """Wait until the run has ended, and return the run. In the main thread of the process that owns the ranks, asks
        for commands when they stop in the debugger.

        Raises ``TimeoutError`` after ``timeout`` seconds, and ``RunError`` when the run failed or was lost. The message
        and traceback of a failure are those of the first rank that failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = resolve_name("workbench.run.debug:asked_while_waiting")(self)
        while True:
            began = time.monotonic()
            if ended():
                break
            if deadline is not None:
                deadline += time.monotonic() - began  # somebody may have typed
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(
                    f"run {self.name!r} is still {self.status} after {timeout} s, at step {self.last_step}"
                )
            time.sleep(0.05)
        self.raise_if_failed()
        return self

    def ended(self) -> bool:
        """Return whether the run is over and its ranks are free again."""
        session_log = log_of(self.path)
        return state.ended(self.status) and (session_log is None or session_log.ranks_are_free.is_set())

    def raise_if_failed(self) -> None:
        """Raise ``RunError`` when the run failed or was lost."""
        status = self.status
        if status == "failed":
            first = self.first_failure() or FirstFailure([], "no rank logged a reason")
            session_log = log_of(self.path)
            advice = f"; {session_log.advice}" if session_log is not None and session_log.advice else ""
            raise RunError(
                f"run {self.name!r} failed at step {self.last_step} on {first.who}: {first.message}{advice}",
                traceback=first.traceback,
            )
        if status == "lost":
            saved = self.checkpoints()
            raise RunError(
                f"run {self.name!r} was lost at step {self.last_step}: the session or the process that started it has "
                "ended, and its ranks with it; "
                + (f"%dist_train --resume {self.name}@{saved[-1]} continues it" if saved else "it has no checkpoint")
            )

    def refuse_if_ended(self, what: str) -> None:
        """Raise ``RunError`` when the run has ended. ``what``: the name of the control, for the message."""
        status = self.status
        if state.ended(status):
            raise RunError(f"run {self.name!r} has ended ({status} at step {self.last_step}), so {what} has no effect")

    def pause(self) -> None:
        """Pause all ranks after this step."""
        self.ask("pause")

    def resume(self) -> None:
        """Continue after a pause."""
        self.ask("resume")

    def step(self, n: int = 1) -> None:
        """Train ``n`` steps, then pause."""
        self.ask("step", n)

    def stop(self, after: str = "step") -> None:
        """End the run after the step it is in. It writes a checkpoint, unless the spec has ``final_checkpoint`` false.

        ``after``: "checkpoint" writes one in any case (the run goes on when it cannot be written), "no-checkpoint"
        none.
        """
        self.ask("stop", after)

    def end(self) -> None:
        """End the processes of a detached run at once, without a checkpoint. Raises ``RunError`` for a run whose ranks
        belong to a kernel, or to another host."""
        resolve_name("workbench.run.detached:end")(self)

    def why(self) -> Diagnosis:
        """Tell what each rank does at this moment, who waits for whom, and what keeps the run from going on; of a run
        that has ended, how it ended. Raises ``RunError`` for a run whose ranks are on another host."""
        found: Diagnosis = resolve_name("workbench.run.why:why_run")(self)
        return found

    def set(self, **settings: Any) -> None:
        """Change settings, and knobs that the training script declared: ``run.set(lr=1e-4, clip=1.0)``.

        ``lr="x0.5"`` multiplies the learning rate, ``lr="schedule"`` returns it to its schedule. All changes of one
        call take effect at the same step. The plan is changed by ``switch``.
        """
        checked = controls.checked_settings(settings, self.declared())
        self._check(checked)
        self.refuse_if_ended("set")
        write_commands(self.path, [new_command(name, value) for name, value in checked.items()])

    def evaluate(self) -> None:
        """Evaluate after this step."""
        self.ask("evaluate")

    def sample(self) -> None:
        """Generate a sample from the model after this step; ``Run.samples()`` returns it."""
        self.ask("sample")

    def checkpoint(self) -> None:
        """Write a checkpoint after this step."""
        self.ask("checkpoint")

    def rollback(self, step: int | str = NEWEST) -> None:
        """Restore the checkpoint of ``step``, or the newest: weights, optimizer, schedule, random generators, data
        position and settings. Raises ``ConfigError`` when there is no such checkpoint."""
        self.ask("rollback", step)

    def freeze(self, layers: str) -> None:
        """Stop updating layers whose names the regular expression ``layers`` matches (``re.search``)."""
        self.ask("freeze", layers)

    def unfreeze(self, layers: str = ".") -> None:
        """Resume updating frozen layers whose names the regular expression ``layers`` matches (default: all)."""
        self.ask("unfreeze", layers)

    def alert(self, name: str, when: str, *, text: str = "", after: int = 1) -> None:
        """Alert, from the next step on, whenever ``when`` begins to hold at ``after`` steps in a row.

        ``when``: an expression such as ``"grad_norm > 5 * median(grad_norm, 50)"``. ``text``: what it means and what to
        do. An alert of the same name is replaced.
        """
        self.ask("alert", {"name": name, "when": when, "text": text, "after": after})

    def branch(self, **changes: Any) -> Run:
        """Continue as a new run with changed options (``lr=1e-4, name="slower"``), and return the new run.

        This run writes a checkpoint and stops, as the new run needs its ranks; it can be resumed later (``--resume``).
        A run that has ended is branched from its newest checkpoint. Raises ``ConfigError`` for options that a branch
        cannot have, and ``RunError`` when this run could not be stopped or the new run did not start.
        """
        before = run_directories()
        started = self._ask_for_branch(changes)
        if started is None:
            branching.wait_until_stopped(self.name, self.ended, self._events)
            started = branching.wait_for_branch(self.path, before)
        return Run(started)

    def successor(self) -> Run | None:
        """Wait for the branch that takes the place of this run, which has ended; None when it did not stop for one.

        For the process that owns the ranks, and starts the branch.
        """
        started = None if self.agreed_branch() is None else branching.started_here(self.path)
        return None if started is None else Run(started)

    def switch(self, plan: str) -> Run:
        """Continue under another plan, such as ``"zero2"`` or ``"tp2 pp2"``, on the ranks that are up; the new run.

        A branch that changes nothing but the plan, called after it: weights, optimizer, schedule, settings and the
        position in the data go on; what each rank draws at random does not, as the ranks have other parts. Raises as
        ``branch`` does.
        """
        return self.branch(plan=plan, name=branching.name_under(self.name, plan))

    def _ask_for_branch(self, changes: dict[str, Any]) -> Path | None:
        """Ask the ranks to stop for a branch, and return None. For a run that has ended, start the branch instead and
        return its directory."""
        recall_algorithm(self.path, self.plan.algorithm)
        typed = branching.check(self.spec, self.settings(), self.last_step, changes)
        if not state.ended(self.status):
            self.ask("branch", typed)
            return None
        step = checkpoints.step_of(checkpoints.find(self.path))
        return branching.launch(branching.options_for(self.path, self.name, typed, step))

    def agreed_branch(self) -> dict[str, Any] | None:
        """Return the options of the branch that the ranks have agreed to stop for; None when there is none."""
        agreed = branching.agreed(self._events())
        return None if agreed is None else branching.options_for(self.path, self.name, *agreed)

    def ask(self, name: str, value: Any = None) -> None:
        """Send the command of one control, by its name. ``value``: a value or its text, as typed."""
        control = controls.find(name, self.declared())
        checked = control.parse(value)
        self._check({name: checked})
        self.refuse_if_ended(name)
        if control.kind == "checkpoint":
            found = checkpoints.find(self.path, checked)
            checked = checked if checked == BEST else checkpoints.step_of(found)
        write_commands(self.path, [new_command(name, checked)])

    def control(self, name: str, value: Any = None) -> None:
        """Send a command from a form, like ``ask``; the options of a branch are one text: ``lr=1e-4 name=slower``."""
        if controls.find(name, self.declared()).starts_run:
            self._ask_for_branch(controls.assignments(str(value or "").split()))
        else:
            self.ask(name, value)

    def _check(self, values: dict[str, Any]) -> None:
        """Raise ``ConfigError`` for controls or values that this run cannot take, because of its plan or its spec."""
        for name in values:
            reason = self.spec.plan.why_control_unavailable(name)
            if reason:
                raise ConfigError(f"{name}: {reason}", field=name)
        for name, value in values.items():
            control = controls.find(name, self.declared())
            if control.option and self.spec.recipe:  # the batch size of a cell's dataloader is not in the spec
                self.spec.replace(**{control.option: value})
            if control.applies == "observer" and self.spec.monitor.level == "off":
                raise ConfigError(
                    f"the monitor of this run is off (--monitor off), so {name} has no effect", field=name
                )
            if control.kind == "alert":
                self._check_condition(value["when"])

    def _check_condition(self, when: str) -> None:
        """Raise ``ConfigError`` for a condition that names what this run cannot log, as far as that is known."""
        cell = self.path / CELL_FILE
        logged: set[str] | None = set() if self.spec.recipe else None
        if cell.exists():
            logged = logged_names(cell.read_text(encoding="utf-8"))
        if logged is not None:
            Expression(when).check_known(logged)

    def replay(self, step: int | None = None, rank: int | None = None) -> Replay:
        """Replay a recorded step whose loss or gradient was not finite, on live ranks: see ``workbench.run.replay``."""
        from workbench.run.replay import replay

        return replay(self.path, self.spec, step, rank)

    def verify(self, against: str = "single", steps: int = 20, progress: Any = None) -> Verification:
        """Whether the plan of this run trains the same as one process (``against="ddp"``: as torch's
        DistributedDataParallel), over its first ``steps`` steps, on live ranks: see ``workbench.verify``. What was
        found is kept in the run directory."""
        found: Verification = resolve_name("workbench.run.verify:verify_run")(self, against, steps, progress)
        return found

    def verification(self) -> Verification:
        """What ``verify`` or ``%dist_verify`` has found. Raises ``RunDirectoryError`` when it was not asked."""
        from workbench.verification.result import Verification

        return Verification.read(self.path)

    def ranks_in_state(self, states: Sequence[str], since: float = 0.0) -> dict[int, float]:
        """Return the ranks that have logged one of these states, such as ``failed``, after ``since`` (seconds since the
        epoch), and when each did so last."""
        events = self._events()
        found = (events["kind"] == EventKind.STATE) & np.isin(events["name"], states) & (events["time"] >= since)
        return dict(zip(events["rank"][found].tolist(), events["time"][found].tolist(), strict=True))

    def first_failure(self, *, restarting: bool = False, since: float = 0.0) -> FirstFailure | None:
        """The failure that explains the others, of those logged after ``since`` (seconds since the epoch); None without
        one. ``restarting``: of those after which the run may be restarted."""
        events = self._events()
        later = events["time"] >= since
        return failure_of({name: values[later] for name, values in events.items()}, restarting=restarting)

    def __repr__(self) -> str:
        of = f"/{self.spec.steps}" if self.spec.steps else ""
        return f"<Run {self.name!r} {self.status} at step {self.last_step}{of}: {self.plan.describe()}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """An output of a notebook stays as it is, so it says how far the run is only once that changes no more."""
        status = self.status
        if state.ended(status):
            printer.text(repr(self))
        else:
            spec = self.spec
            length = f"{spec.steps} steps" if spec.steps else f"{spec.epochs} epoch{'s' if spec.epochs > 1 else ''}"
            printer.text(f"<Run {self.name!r}: {self.plan.describe()}, {length}>")

    def _events(self) -> Columns:
        events, session_log = self._table("events"), log_of(self.path)
        return events if session_log is None else with_rows(events, session_log.unwritten)


def newest_live(among: Callable[[Path], bool] = lambda path: True) -> Run | None:
    """The newest run that has not ended, of those whose directories are ``among``; None when all have."""
    for path in filter(among, reversed(runs_with_spec())):
        run = Run(path)
        if not state.ended(run.status):
            return run
    return None
