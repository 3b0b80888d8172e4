"""The controls that a panel shows: what is declared for the run, and the history of what was set."""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from workbench.records import Command
from workbench.run_directory import CONTROL_FILE
from workbench.telemetry.store import Columns, Store

#: those that the head of every panel has
HEAD = ("pause", "resume", "step", "checkpoint", "stop")
_FIELDS = ("name", "kind", "unit", "low", "high", "choices", "help")
_STAND_IN = (
    ("pause", "button", "", None, None, (), "pause after this step"),
    ("resume", "button", "", None, None, (), "go on"),
    ("step", "number", "steps", 1, 10_000, (), "take so many steps, then pause"),
    ("stop", "button", "", None, None, (), "end the run after this step"),
    ("lr", "number", "", 0, 10, (), "learning rate; empty: back to the schedule"),
    ("clip", "number", "", 0, 1e6, (), "largest global gradient norm; 0: no clipping"),
    ("weight_decay", "number", "", 0, 10, (), "weight decay of all parameter groups"),
    ("grad_every", "number", "steps", 0, 100_000, (), "steps between gradient statistics; 0: never"),
    ("grad_layers", "text", "", None, None, (), "regular expression: layers that are watched"),
    ("evaluate", "button", "", None, None, (), "evaluate after this step"),
    ("sample", "button", "", None, None, (), "let the model speak after this step"),
    ("checkpoint", "button", "", None, None, (), "write a checkpoint after this step"),
)


def declared(store: Store) -> list[dict[str, Any]]:
    """The controls of a run: name, kind (button, number, text, choice), unit, low, high, choices, help."""
    del store  # every run has the same; a knob of the user's own code will be read from its log
    try:
        controls = importlib.import_module("workbench.controls").CONTROLS
    except ModuleNotFoundError:
        return [{**dict(zip(_FIELDS, row, strict=True)), "head": row[0] in HEAD} for row in _STAND_IN]
    return [
        {**{name: _plain(getattr(control, name, None)) for name in _FIELDS}, "head": control.name in HEAD}
        for control in controls
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list, frozenset, set)) else value


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
