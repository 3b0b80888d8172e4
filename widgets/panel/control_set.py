"""The controls that a panel shows: those declared for the run, their values in force, and the history of commands."""

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

#: values in force that are shown only beside the controls that set or alter them
_NOT_SHOWN = ("interval", "frozen")


def declared(store: Store) -> list[dict[str, Any]]:
    """Return the controls of a run, with the knobs of its training script, each as returned by ``control_of``."""
    own = {control.name: control for control in knobs_of(store.table("events"))}
    plan = store.spec.plan
    found = [
        control_of(control, plan.why_control_unavailable(control.name))
        for control in (*controls.CONTROLS, *own.values())
    ]
    for control in found:
        button, name = control["button"], control["name"]
        if button is not None:
            able = [each for each in button["answers"] if not plan.why_control_unavailable(f"{name} {each[1]}")]
            button["answers"] = able
    return found


def control_of(control: Control, unavailable: str = "") -> dict[str, Any]:
    """Return what the page needs of a control, as JSON values; names are those of ``Control``.

    ``unavailable``: why the run's plan does not support the control; it replaces the help, and ``states`` is empty.
    """
    return {
        "name": control.name,
        "title": f"{control.title[0].upper()}{control.title[1:]}" if control.title else control.name,
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


def current_value_words(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the text that the form shows beside each control: its value in force, in short form."""
    found = {name: short(value) for name, value in values.items() if name not in _NOT_SHOWN}
    for control in controls.CONTROLS:
        if control.value_name not in values:
            continue
        value = values[control.value_name]
        is_zero = control.when_zero and value == 0
        found[control.name] = control.when_zero if is_zero else short(value) or control.when_empty
        if control.kind == "interval" and value == AUTOMATIC and "interval" in values:
            found[control.name] = f"{AUTOMATIC}: {short(values['interval'])}"
    return found


class History:
    """The commands of a run (``control.jsonl``), each with the ranks' answer (``workbench.events.command_results``)."""

    def __init__(self, run: Path) -> None:
        self._reader = CommandReader(run)
        self._asked: list[Command] = []
        self._answers: dict[tuple[Any, ...], Answer] = {}
        self._changed = True

    def take(self, events: Columns) -> None:
        """Add rows of the ``events`` table, and the commands written since the last call."""
        for index in np.isin(events["kind"], ANSWERS).nonzero()[0]:
            name, step, value, command = (events[key][index] for key in ("name", "step", "value", "command"))
            key = (str(name), int(step), str(value), int(command))
            if key in self._answers:
                continue  # another rank has logged the same answer
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
        """Return the newest 100 rows, oldest first, or None when nothing changed and ``anew`` is false.

        Each row has name, value, old, who, time, step (None: not answered yet) and refused (the reason, or "").
        A change that no command asked for, such as one made by the training script, has an empty ``who``.
        """
        if not (self._changed or anew):
            return None
        self._changed = False
        shown = answered(self._asked, self._answers.values())[-100:]
        names = {"name": "name", "value": "value", "old": "old_value", "who": "who", "time": "time", "step": "step"}
        return [{key: getattr(row, name) for key, name in {**names, "refused": "refused"}.items()} for row in shown]

    def _read_asked(self) -> None:
        lines = self._reader.read()
        self._asked += [line for line in lines if isinstance(line, Command)]  # ranks ignore invalid lines too
        self._changed = self._changed or bool(lines)
