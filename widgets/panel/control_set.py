"""The controls that a panel shows: what is declared for the run, and the history of what was set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.controls import AUTOMATIC, CONTROLS, Control
from workbench.core.records import Command
from workbench.events.command_results import ANSWERS, Answer, answered
from workbench.events.words import short
from workbench.rundir.directory import CONTROL_FILE
from workbench.telemetry.store import Store

#: those that the head of every panel has
HEAD = ("pause", "resume", "step", "checkpoint", "stop")
#: how a control of a kind is asked for; the rest is typed as text, and checked where it arrives
_HINTS = {
    "lr": "1e-4, or x0.5",
    "interval": "steps, or auto",
    "regex": "part of a name",
    "changes": "lr=1e-4 name=b",
}
_FORMS = {"none": "button", "float": "number", "int": "number", "choice": "choice"}


def declared(store: Store) -> list[dict[str, Any]]:
    """The controls of a run, its training script's own knobs included: name, kind (button, number, text, choice), unit,
    low, high, choices, default, hint (what may be typed), help, whether the head of the panel has it, and whether it is
    a setting or an act. Where the run's framework cannot do it, ``unavailable``, and ``help`` says why."""
    plan = store.spec.plan
    events = store.table("events")
    chosen = (events["kind"] == "control") & (events["name"] == "declared") & (events["rank"] == 0)
    knobs = [Control.from_description(json.loads(text)) for text in events["value"][chosen]]
    return [
        {
            "name": control.name,
            "kind": _FORMS.get(control.kind, "text"),
            "unit": control.unit,
            "low": control.low,
            "high": control.high,
            "choices": list(control.choices),
            "help": plan.why_control_unavailable(control.name) or control.help,
            "unavailable": bool(plan.why_control_unavailable(control.name)),
            "head": control.name in HEAD,
            "setting": control.setting,
            "default": control.default,
            "hint": _HINTS.get(control.kind, ""),
        }
        for control in (*CONTROLS, *{knob.name: knob for knob in knobs}.values())
    ]


def in_force_words(values: Mapping[str, Any]) -> dict[str, str]:
    """What stands beside each control of the form: the value in force, as short as it is typed. The learning rate
    changes with every step and is a fact of its own."""
    found = {name: short(value) for name, value in values.items() if name not in ("lr", "interval", "frozen")}
    if "frozen" in values:
        found["freeze"] = found["unfreeze"] = short(values["frozen"]) or "none is frozen"
    if found.get("grad_layers") == "":
        found["grad_layers"] = "all"
    if values.get("grad_every") == AUTOMATIC and "interval" in values:
        found["grad_every"] = f"auto: {short(values['interval'])}"
    return found


class History:
    """Commands as they were asked (``control.jsonl``), and what ranks did (``workbench.events.command_results``)."""

    def __init__(self, run: Path) -> None:
        self._file = run / CONTROL_FILE
        self._offset = 0
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
                value=json.loads(value),
                old_value=json.loads(events["old_value"][index]),
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
        try:
            if self._file.stat().st_size == self._offset:
                return
            with self._file.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return  # a run that nobody could control
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            try:
                self._asked.append(Command.from_line(line))
            except (ValueError, TypeError):
                continue  # another version's: the ranks do not read it either
        self._changed = self._changed or bool(whole)
