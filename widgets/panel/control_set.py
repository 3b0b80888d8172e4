"""The controls that a panel shows: what is declared for the run, and the history of what was set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core import controls
from workbench.core.columns import Columns
from workbench.core.controls import AUTOMATIC, Control
from workbench.core.records import Command
from workbench.events.command_results import ANSWERS, Answer, answered
from workbench.events.decode import decode
from workbench.events.settings import declared as knobs_of
from workbench.events.words import short
from workbench.rundir.commands import CommandReader
from workbench.telemetry.store import Store

#: values in force that are shown under the names of the controls that set or alter them
_NOT_SHOWN = ("interval", "frozen")


def declared(store: Store) -> list[dict[str, Any]]:
    """The controls of a run, its training script's own knobs included, as JSON values: ``control_of`` of each."""
    own = {control.name: control for control in knobs_of(store.table("events"))}
    plan = store.spec.plan
    return [
        control_of(control, plan.why_control_unavailable(control.name))
        for control in (*controls.CONTROLS, *own.values())
    ]


def control_of(control: Control, unavailable: str = "") -> dict[str, Any]:
    """What the page needs of a control: ``widget`` (button, number, text, choice), ``button`` in the head of the panel
    (or None), ``states`` of a run in which it can be done, and the declaration's fields of the same names.
    ``unavailable``: why the run's framework cannot do it, which stands in place of the help."""
    return {
        "name": control.name,
        "widget": control.widget,
        "unit": control.unit,
        "low": control.low,
        "high": control.high,
        "choices": list(control.choices),
        "help": unavailable or control.help,
        "setting": control.setting,
        "default": control.default,
        "hint": control.hint,
        "states": [] if unavailable else list(control.states),
        "ends": control.ends,
        "button": None if control.button is None else asdict(control.button),
    }


def in_force_words(values: Mapping[str, Any]) -> dict[str, str]:
    """What the form shows beside each control: the value in force, as short as it is typed."""
    found = {name: short(value) for name, value in values.items() if name not in _NOT_SHOWN}
    for control in controls.CONTROLS:
        if control.in_force not in values:
            continue
        value = values[control.in_force]
        found[control.name] = short(value) or control.when_empty
        if control.kind == "interval" and value == AUTOMATIC and "interval" in values:
            found[control.name] = f"{AUTOMATIC}: {short(values['interval'])}"
    return found


class History:
    """Commands as they were asked (``control.jsonl``), and what ranks did (``workbench.events.command_results``)."""

    def __init__(self, run: Path) -> None:
        self._reader = CommandReader(run)
        self._asked: list[Command] = []
        self._answers: dict[tuple[Any, ...], Answer] = {}
        self._changed = True

    def take(self, events: Columns) -> None:
        """Take in rows of the ``events`` table and what was asked since the last call."""
        for index in np.isin(events["kind"], ANSWERS).nonzero()[0]:
            name, step, value, command = (events[key][index] for key in ("name", "step", "value", "command"))
            key = (str(name), int(step), str(value), int(command))
            if key in self._answers:
                continue  # another rank answered the same
            self._answers[key] = Answer(
                time=float(events["time"][index]),
                step=int(step),
                kind=str(events["kind"][index]),
                name=str(name),
                value=decode(value),
                old_value=decode(events["old_value"][index]),
                who=str(events["who"][index]),
                command=int(command),
            )
            self._changed = True
        self._read_asked()

    def rows(self, *, anew: bool = False) -> list[dict[str, Any]] | None:
        """The newest 100, oldest first, or None when nothing changed.

        Each has name, value, old, who, time, step (None: no rank answered yet) and refused (why, or ""). What no
        command asked for (a schedule of the code's own) stands there without a who.
        """
        if not (self._changed or anew):
            return None
        self._changed = False
        shown = answered(self._asked, self._answers.values())[-100:]
        names = {"name": "name", "value": "value", "old": "old_value", "who": "who", "time": "time", "step": "step"}
        return [{key: getattr(row, name) for key, name in {**names, "refused": "refused"}.items()} for row in shown]

    def _read_asked(self) -> None:
        lines = self._reader.read()
        self._asked += [line for line in lines if isinstance(line, Command)]  # ranks do not read the others either
        self._changed = self._changed or bool(lines)
