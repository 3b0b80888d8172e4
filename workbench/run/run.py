"""A run and its verbs. Any process can open one: ``Run("runs/...")``.

A verb checks its value here, writes one line of ``control.jsonl``, and returns. The ranks apply it after the step they
are in and say so in an event (``Run.events()``: kind ``control``, or ``refused`` and why). Every verb raises
``RunError`` when the run has ended, and ``ConfigError`` for a wrong value.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core import controls
from workbench.core.columns import Columns
from workbench.core.controls import NEWEST
from workbench.core.records import EventKind
from workbench.errors import ConfigError, RunError
from workbench.events.outcome import FirstFailure, Outcome, failure_of
from workbench.run import branching
from workbench.run.owned import OwnedRun
from workbench.run.reader import RunReader
from workbench.rundir import checkpoints, state
from workbench.rundir import directory as run_directory
from workbench.rundir.commands import new_command, write_commands
from workbench.telemetry.derive import with_rows

if TYPE_CHECKING:
    from workbench.run.replay import Replay


class Run(RunReader):
    """One training run. ``name`` is a run directory, a run's name, or None for the newest run.

    Raises ``RunDirectoryError`` when there is no such run, ``SchemaError`` when a newer version wrote it.
    """

    #: what only the process that started the run knows; None elsewhere
    _handle: OwnedRun | None = None

    @property
    def status(self) -> str:
        """``starting``, ``running``, ``paused``, ``finished``, ``stopped``, ``failed`` or ``lost``."""
        released = self._handle is not None and self._handle.released.is_set()  # asked before the logs are read
        logged = state.state_of(self._events(), self.plan.ranks)
        if released and not state.ended(logged):
            return "failed"  # the ranks are free again and could not say how it ended
        return logged if self._handle is not None else state.present_state(logged, self.path)

    def wait(self, timeout: float | None = None) -> Run:
        """Wait until the run ended; returns the run.

        Raises ``TimeoutError`` after ``timeout`` seconds, and ``RunError`` when the run failed (its message and
        traceback are those of the first rank that failed).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.ended():
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(
                    f"run {self.name!r} is still {self.status} after {timeout} s, at step {self.last_step}"
                )
            time.sleep(0.05)
        self.raise_if_failed()
        return self

    def ended(self) -> bool:
        """Whether the run is over and its ranks are free again."""
        return self.status in state.ENDED and (self._handle is None or self._handle.released.is_set())

    def raise_if_failed(self) -> None:
        """``RunError`` when the run failed or was lost."""
        status = self.status
        if status == "failed":
            first = failure_of(self._events()) or FirstFailure([], "no rank said why")
            advice = f"; {self._handle.advice}" if self._handle is not None and self._handle.advice else ""
            raise RunError(
                f"run {self.name!r} failed at step {self.last_step} on {first.who}: {first.message}{advice}",
                traceback=first.traceback,
            )
        if status == "lost":
            raise RunError(
                f"run {self.name!r} was lost at step {self.last_step}: the process that started it has ended"
            )

    def refuse_if_ended(self, what: str) -> None:
        """``RunError`` when the run can no longer take what is asked."""
        status = self.status
        if status in state.ENDED:
            raise RunError(
                f"run {self.name!r} has ended ({status} at step {self.last_step}): there is nothing to {what}"
            )

    def pause(self) -> None:
        """Hold all ranks after this step."""
        self.ask("pause")

    def resume(self) -> None:
        """Go on after a pause."""
        self.ask("resume")

    def step(self, n: int = 1) -> None:
        """Train ``n`` steps, then pause."""
        self.ask("step", n)

    def stop(self, after: str = "step") -> None:
        """End the run after the step it is in (``after="step"``), or after writing a checkpoint (``"checkpoint"``)."""
        self.ask("stop", after)

    def set(self, **settings: Any) -> None:
        """Change settings: ``run.set(lr=1e-4, clip=1.0)``, a factor (``lr="x0.5"``), back (``lr="schedule"``), or a
        knob that the training script declared. All of them take effect at the same step."""
        checked = controls.checked_settings(settings, self.declared())
        self._check(checked)
        self.refuse_if_ended("set")
        write_commands(self.path, [new_command(name, value) for name, value in checked.items()])

    def evaluate(self) -> None:
        """Evaluate after this step."""
        self.ask("evaluate")

    def sample(self) -> None:
        """Let the model write a sample after this step (``Run.samples()``)."""
        self.ask("sample")

    def checkpoint(self) -> None:
        """Write a checkpoint after this step."""
        self.ask("checkpoint")

    def rollback(self, step: int | str = NEWEST) -> None:
        """Go back to the checkpoint at ``step``, or the newest: weights, optimizer, schedule, random numbers, data and
        settings. ``ConfigError`` when there is no such checkpoint."""
        self.ask("rollback", step)

    def freeze(self, layers: str) -> None:
        """No longer update layers in whose names the regular expression is found."""
        self.ask("freeze", layers)

    def unfreeze(self, layers: str = ".") -> None:
        """Update frozen layers with such names again (default: all)."""
        self.ask("unfreeze", layers)

    def branch(self, **changes: Any) -> Run:
        """Go on from here as a new run with changed options (``lr=1e-4, name="slower"``), and return it.

        This run writes a checkpoint and stops, as the new one needs its ranks; it is kept, and can be gone on with
        (``--resume``). A run that has ended is branched at its newest checkpoint. Raises ``ConfigError`` for options
        that cannot be, ``RunError`` when the run could not be stopped or the new one did not start.
        """
        found: Run = branching.branch(self, changes, Run)
        return found

    def ask(self, name: str, value: Any = None) -> None:
        """Ask for one act or setting by its name, as the command line and buttons do; ``value`` may be text."""
        control = controls.find(name, self.declared())
        checked = control.parse(value)
        self._check({name: checked})
        self.refuse_if_ended(name)
        if control.kind == "checkpoint":
            checked = checkpoints.step_of(checkpoints.find(self.path, checked))
        write_commands(self.path, [new_command(name, checked)])

    def control(self, name: str, value: Any = None) -> None:
        """What a form does: ``ask`` with the value as it was typed; options of a new run as ``lr=1e-4 name=slower``."""
        if controls.find(name, self.declared()).starts_run:
            branching.request(self, controls.assignments(str(value or "").split()))
        else:
            self.ask(name, value)

    def _check(self, values: dict[str, Any]) -> None:
        """What is wrong for this run although it would be right for another. ``ConfigError``."""
        for name in values:
            reason = self.spec.plan.why_control_unavailable(name)
            if reason:
                raise ConfigError(f"{name}: {reason}", field=name)
        for name, value in values.items():
            control = controls.find(name, self.declared())
            if control.option and self.spec.recipe:  # a cell's own loader has a batch size of its own
                self.spec.replace(**{control.option: value})
            if control.applies == "observer" and self.spec.monitor.level == "off":
                raise ConfigError(f"this run watches nothing (--monitor off), so {name} has no effect", field=name)

    def replay(self, step: int | None = None, rank: int | None = None) -> Replay:
        """Run a kept step whose loss or gradient was not finite again, on live ranks: see ``workbench.run.replay``."""
        from workbench.run.replay import replay

        return replay(self.path, self.spec, step, rank)

    def attach(self) -> None:
        """Called by the session that starts the run, before any rank hears of it."""
        self._handle = OwnedRun(self.path)

    def rank_died(self, rank: int, reason: str) -> None:
        """Called by the session: a rank ended while this run needed it. Written where every reader sees it."""
        if self._handle is not None and rank < self.plan.ranks:
            self._handle.rank_died(rank, reason)

    def ranks_that_say(self, states: Sequence[str]) -> frozenset[int]:
        """Ranks in whose log one of these states stands: ``failed``, say."""
        events = self._events()
        said = (events["kind"] == EventKind.STATE) & np.isin(events["name"], states)
        return frozenset(int(rank) for rank in events["rank"][said])

    def ranks_ended(self, ranks: Sequence[int], why: str) -> None:
        """Called by the session before it ends ranks that wait for one that failed."""
        if self._handle is not None:
            self._handle.ranks_ended(ranks, why)

    def detach(self, answers: dict[int, Outcome | None], *, logged: Collection[int]) -> None:
        """Called by the session when the ranks are free or gone; ``answers``: what each said about its end, ``logged``:
        those whose log says it."""
        if self._handle is not None:
            self._handle.end(answers, logged=logged)

    def __repr__(self) -> str:
        return f"<Run {self.name!r} {self.status} at step {self.last_step}/{self.spec.steps}: {self.plan.describe()}>"

    def _events(self) -> Columns:
        events = self._table("events")
        return events if self._handle is None else with_rows(events, self._handle.unwritten)


def newest_live() -> Run | None:
    """The newest run that has not ended; None when all have."""
    for path in reversed(run_directory.runs_with_spec()):
        run = Run(path)
        if run.status not in state.ENDED:
            return run
    return None
