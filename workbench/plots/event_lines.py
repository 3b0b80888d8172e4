"""Upright lines in figures: what was done to a run, from its events. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from workbench.core.columns import Columns
from workbench.events.words import words
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

MOST = 100


class Marks:
    """``take`` events as they come; ``all``: the newest, as rows of the source "marks" of figures (``theme``).
    ``units``: of knobs that the training script declared.

    What was done in steps that a rollback then took back has none: figures show those steps as they were trained last.
    """

    def __init__(self) -> None:
        self.changed = False
        self._found: dict[tuple[int, str], dict[str, Any]] = {}
        self.units: dict[str, str] = {}
        self._back: dict[int, float] = {}  # step that was gone back to -> when, the last time

    def take(self, events: Columns, begin: float) -> None:
        """Rows of the table ``events``; times are counted from ``begin`` (epoch), a mark of all ranks is one."""
        for i in range(events["step"].size):
            kind, name = str(events["kind"][i]), str(events["name"][i])
            if kind != "control" and (kind, name) != ("checkpoint", "failed"):
                continue
            value, old = decoded(events["value"][i]), decoded(events["old_value"][i])
            if name == "declared":
                self.units |= _unit_of(value)
                continue
            step, text = int(events["step"][i]), words(kind, name, value, old, units=self.units)
            time = float(events["time"][i]) - begin
            if name == "rollback":
                self._back[step] = max(time, self._back.get(step, time))
            if (step, text) not in self._found:
                self._found[step, text] = {"step": step, "time": time, "label": f"step {step}: {text}"}
                self.changed = True

    def all(self) -> list[dict[str, Any]]:
        """step, time and label of each."""
        self.changed = False
        taken_back = [
            key
            for key, mark in self._found.items()
            if any(mark["step"] > step and mark["time"] <= time for step, time in self._back.items())
        ]
        for key in taken_back:
            del self._found[key]
        return list(self._found.values())[-MOST:]


def decoded(text: str) -> Any:
    """An event's value; a log may have been written by anybody: what is no JSON is taken as it stands."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def of(store: Store) -> list[dict[str, Any]]:
    """The marks of a whole run."""
    found, begin = Marks(), rows.progress(store).begin
    found.take(store.table("events"), 0.0 if math.isnan(begin) else begin)
    return found.all()


def _unit_of(declaration: Any) -> Mapping[str, str]:
    """Name and unit of a knob, from the value of its event ``declared``."""
    if not isinstance(declaration, dict):
        return {}
    return {str(declaration.get("name")): str(declaration.get("unit", ""))}


def fill(figure: Any, marks: list[dict[str, Any]]) -> None:
    """Put marks into a figure that has room for them."""
    for source in figure.select({"name": "marks"}):
        source.data = {key: [mark[key] for mark in marks] for key in ("step", "time", "label")}
