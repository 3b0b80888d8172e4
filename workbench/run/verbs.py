"""What can be asked of a run while it trains. A verb checks its value here, writes one line, and returns.

The ranks apply it after the step they are in and answer with an event (``Run.events()``: kind ``control``, or
``refused`` and why). Every verb raises ``RunError`` when the run has ended, and ``ConfigError`` for a wrong value.
"""

from __future__ import annotations

import errno
import getpass
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core import controls
from workbench.core.controls import NEWEST, Control
from workbench.core.records import Command
from workbench.errors import ConfigError, RunDirectoryError
from workbench.events.settings import InForce
from workbench.rundir import checkpoints
from workbench.rundir.directory import CONTROL_FILE

if TYPE_CHECKING:
    from workbench.core.columns import Columns
    from workbench.core.config import TrainSpec
    from workbench.run.run import Run

#: several processes write commands to one run: a random number tells them apart, and JSON keeps 53 bits
_ID_BITS = 53


class Verbs:
    """The verbs of ``Run``: one for each act of ``workbench.core.controls``, and ``set`` for the settings."""

    path: Path

    if TYPE_CHECKING:

        @property
        def spec(self) -> TrainSpec: ...

        @property
        def name(self) -> str: ...

        def _events(self) -> Columns: ...

        def _table(self, table: str) -> Columns: ...

        def refuse_if_ended(self, what: str) -> None: ...

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
        checked = controls.settings(settings, self.declared())
        self._check(checked)
        self.refuse_if_ended("set")
        self._write([self._command(name, value) for name, value in checked.items()])

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
        from workbench.run.branching import branch

        return branch(self, changes)  # type: ignore[arg-type]

    def ask(self, name: str, value: Any = None) -> None:
        """Ask for one act or setting by its name, as the command line and buttons do; ``value`` may be text."""
        control = controls.find(name, self.declared())
        checked = control.parse(value)
        self._check({name: checked})
        self.refuse_if_ended(name)
        if name == "rollback":
            checked = checkpoints.step_of(checkpoints.find(self.path, checked))
        self._write([self._command(name, checked)])

    def control(self, name: str, value: Any = None) -> None:
        """What a form does: ``ask`` with the value as it was typed; ``branch`` takes ``lr=1e-4 name=slower``."""
        if name == "branch":
            from workbench.run.branching import request

            request(self, controls.assignments(str(value or "").split()))  # type: ignore[arg-type]
        else:
            self.ask(name, value)

    def controls(self) -> list[Control]:
        """Everything that can be asked of this run, its training script's own knobs included."""
        return [*controls.CONTROLS, *self.declared()]

    def settings(self) -> dict[str, Any]:
        """The values in force: name -> value of all settings and knobs, and ``frozen``: layers that are not updated."""
        found = InForce()
        found.take(self._events())
        steps = self._table("steps")
        if steps["time"].size:
            newest = steps["time"].argmax()
            found.take_lr(float(steps["lr"][newest]), float(steps["time"][newest]))
        return {name: value for name, value in found.values.items() if name != "interval"}

    def declared(self) -> list[Control]:
        """Knobs that the training script declared."""
        events = self._events()
        chosen = ((events["kind"] == "control") & (events["name"] == "declared") & (events["rank"] == 0)).nonzero()[0]
        found = [Control.from_description(json.loads(events["value"][i])) for i in chosen]
        return list({control.name: control for control in found}.values())

    def checkpoints(self) -> list[int]:
        """Steps that have a checkpoint."""
        return checkpoints.steps(self.path)

    def _check(self, values: dict[str, Any]) -> None:
        """What is wrong for this run although it would be right for another. ``ConfigError``."""
        for name in values:
            reason = self.spec.plan.why_control_unavailable(name)
            if reason:
                raise ConfigError(f"{name}: {reason}", field=name)
        pieces = values.get("accumulate")
        if pieces is not None and self.spec.recipe:  # a cell's own loader has a batch size of its own
            self.spec.replace(accumulate=pieces)
        if self.spec.monitor.level == "off":
            for name in ("grad_every", "grad_layers"):
                if name in values:
                    raise ConfigError(f"this run watches nothing (--monitor off), so {name} has no effect", field=name)

    @staticmethod
    def _command(name: str, value: Any) -> Command:
        return Command(time=time.time(), name=name, value=value, who=getpass.getuser(), id=secrets.randbits(_ID_BITS))

    def _write(self, commands: Sequence[Command]) -> None:
        """All in one write, so that they are read, and take effect, together. A line before them that has no end, as a
        disk leaves one that fills up in it, gets one: else the next would be a part of it."""
        text = "".join(command.to_line() for command in commands).encode()
        try:
            descriptor = os.open(self.path / CONTROL_FILE, os.O_RDWR | os.O_APPEND)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    text = b"\n" + text
                if os.write(descriptor, text) < len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path / CONTROL_FILE} cannot be written ({error.strerror}), so ranks cannot be asked: "
                "session.interrupt() or %dist_down ends them"
            ) from error
