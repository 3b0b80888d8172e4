"""The controls that a panel shows: what is declared for the run, and the history of what was set."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from workbench.controls import CONTROLS, Control
from workbench.records import Command
from workbench.run_directory import CONTROL_FILE
from workbench.telemetry.store import Columns, Store

#: those that the head of every panel has
HEAD = ("pause", "resume", "step", "checkpoint", "stop")
#: how a control of a kind is asked for; the rest is typed as text, and checked where it arrives
_FORMS = {"none": "button", "float": "number", "int": "number", "choice": "choice"}


def declared(store: Store) -> list[dict[str, Any]]:
    """The controls of a run, its training script's own knobs included: name, kind (button, number, text, choice), unit,
    low, high, choices, help, and whether the head of the panel has it."""
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
            "help": control.help,
            "head": control.name in HEAD,
        }
        for control in (*CONTROLS, *{knob.name: knob for knob in knobs}.values())
    ]


class History:
    """Commands as they were asked (``control.jsonl``) and as ranks applied them (events of kind ``control``)."""

    def __init__(self, run: Path) -> None:
        self._file = run / CONTROL_FILE
        self._offset = 0
        self._asked: list[Command] = []
        self._applied: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._seen: set[tuple[str, int, str]] = set()
        self._changed = True

    def take(self, events: Columns) -> None:
        """Take in rows of the ``events`` table and what was asked since the last call."""
        for index in (events["kind"] == "control").nonzero()[0]:
            name, step, value = (events[key][index] for key in ("name", "step", "value"))
            if (str(name), int(step), str(value)) in self._seen:
                continue  # another rank applied the same
            self._seen.add((str(name), int(step), str(value)))
            entry = {"step": int(step), "value": json.loads(value), "old": json.loads(events["old_value"][index])}
            self._applied[str(name)].append({**entry, "time": float(events["time"][index])})
            self._changed = True
        self._read_asked()

    def rows(self, *, anew: bool = False) -> list[dict[str, Any]] | None:
        """The newest 100, oldest first, or None when nothing changed.

        Each has name, value, old, who, time and step (None: it did not take effect yet).
        The k-th command of a name is the k-th that was applied; what no command asked for (a schedule of the code's
        own) stands there without a who.
        """
        if not (self._changed or anew):
            return None
        self._changed = False
        left = {name: list(entries) for name, entries in self._applied.items()}
        out = []
        for command in self._asked:
            done = left.get(command.name) or []
            applied = done.pop(0) if done else {"step": None, "value": command.value, "old": None}
            out.append({"name": command.name, "who": command.who, **applied, "time": command.time})
        out += [{"name": name, "who": "", **entry} for name, entries in left.items() for entry in entries]
        out.sort(key=lambda row: row["time"])
        return out[-100:]

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
