"""Steering: agreed commands are carried out between two steps, on every rank alike.

What a command does stands in ``settings`` and ``acts``; ``Steering`` takes commands in their order, holds the ranks
while they are paused, and logs what came of each. A command that cannot be applied is an event (kind ``refused``) and
changes nothing; whether it can depends only on what all ranks know.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from workbench.core import controls
from workbench.core.controls import Control
from workbench.core.knobs import Knob
from workbench.core.records import Command, Event, EventKind
from workbench.engine.agree.control import AgreedControl
from workbench.engine.loop.acts import ACTS, Boundary, Change, Hold, TrainingLoop
from workbench.engine.loop.settings import Settings
from workbench.errors import ConfigError, RunError
from workbench.rundir.commands import BadLine
from workbench.rundir.log import RankLogWriter


class Steering:
    """Carries out agreed commands. ``boundary`` is called after each step, on every rank.

    ``repeated``: commands that took effect before a restart, in their order, each with the step after which it did.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        loop: TrainingLoop,
        control: AgreedControl,
        log: RankLogWriter,
        enter: Callable[[str], None],
        repeated: Sequence[tuple[int, Command]] = (),
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._control = control
        self._log = log
        self._enter = enter
        self._hold = Hold()
        self._declared: dict[str, Knob] = {}
        self._repeated = list(repeated)

    def boundary(self, step: int) -> Boundary:
        """Apply what was agreed for the moment after ``step``, and stay there while paused."""
        here = Boundary(step, self._hold, self._settings, self._loop)
        self.declare_knobs(step)
        self._hold.count_step()
        self._repeat(here)
        self._apply_all(self._control.take(), here)
        held = False
        while self._hold.paused and not here.stop:
            if not held:
                held = True
                self._enter("paused")
                self._log.event(EventKind.STATE, "paused", step=here.step)
                self._log.flush()
            self._apply_all(self._control.wait(), here)
        if held and not here.stop:
            self._log.event(EventKind.STATE, "running", step=here.step)
        return here

    def begin(self, step: int) -> None:
        """Before the first step, after ``step``: carry out again what was done at this moment before a restart."""
        self._repeat(Boundary(step, self._hold, self._settings, self._loop))

    def _repeat(self, here: Boundary) -> None:
        due = [command for step, command in self._repeated if step == here.step]
        if due:
            self._repeated = [each for each in self._repeated if each[0] != here.step]
            self._apply_all(due, here)

    def end(self, step: int) -> None:
        """After the last step: answer what came too late to be applied."""
        self._control.post()
        for command in self._control.take():
            if isinstance(command, Command):
                self._refuse(command, "the run ended before it could be applied", step)

    def declare_knobs(self, step: int) -> None:
        """Tell the log of knobs that the training script declared since the last call."""
        for knob in self._settings.knobs:
            if self._declared.get(knob.control.name) is not knob:
                self._declared[knob.control.name] = knob
                self._log.event(
                    EventKind.CONTROL, "declared", {**knob.control.describe(), "value": knob.value}, step=step
                )

    def tell_settings(self, step: int) -> None:
        """Tell the log which values hold; what is set later is told by itself."""
        if self._log.rank == 0:
            self._log.event(EventKind.SETTINGS, "in_force", self._settings.current(), step=step)

    def _apply_all(self, commands: Sequence[Command | BadLine], here: Boundary) -> None:
        for command in commands:
            if isinstance(command, BadLine):
                value = {"line": command.text, "reason": command.reason}
                self._log.event(EventKind.WARNING, "bad_command", value, step=here.step)
                continue
            try:
                control = controls.find(command.name, self._settings.knobs.controls())
                change = self._applied(control, control.parse(command.value), here)
            except (ConfigError, RunError) as error:
                self._refuse(command, str(error), here.step)
            else:
                self._event(EventKind.CONTROL, command, change.value, change.old, here.step)
                if change.restored:
                    self.tell_settings(here.step)

    def _applied(self, control: Control, value: Any, here: Boundary) -> Change:
        if not control.setting:
            return ACTS[control.name](here, value)
        old = self._settings.now(control.name)
        self._settings.set(control.name, value)
        return Change(self._settings.now(control.name), old)

    def _refuse(self, command: Command, reason: str, step: int) -> None:
        self._event(EventKind.REFUSED, command, {"value": command.value, "reason": reason}, None, step)

    def _event(self, kind: EventKind, command: Command, value: Any, old: Any, step: int) -> None:
        self._log.append(
            Event(
                time=time.time(),
                step=step,
                rank=self._log.rank,
                kind=kind,
                name=str(command.name),
                value=json.dumps(value),
                old_value=json.dumps(old),
                who=str(command.who),
                command=command.id if isinstance(command.id, int) and 0 <= command.id < 2**53 else 0,
            )
        )
