"""Vertical lines in figures that mark what users did to a run, made from its events."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from workbench.core.columns import Columns
from workbench.core.records import EventKind
from workbench.events.decode import decode
from workbench.events.words import words
from workbench.telemetry import row_views as rows
from workbench.telemetry.rollbacks import took_back
from workbench.telemetry.store import Store

#: largest number of marks in a figure
MOST = 100


class Marks:
    """Collects marks from events as they arrive.

    ``all`` returns the newest ones as rows of the source "marks" of a figure (``theme.new_figure``). ``units``: units
    of the controls that the training script declared. Events in steps that a rollback has undone give no marks, as
    figures show these steps as they were trained the last time.
    """

    def __init__(self) -> None:
        self.changed = False
        self._found: dict[tuple[int, str], dict[str, Any]] = {}
        self.units: dict[str, str] = {}
        self._rollbacks: dict[int, float] = {}  # step that training returned to -> time of the last such rollback

    def take(self, events: Columns, begin: float) -> None:
        """Take rows of the table ``events``. ``begin``: epoch seconds from which times count. Equal events of several
        ranks give one mark."""
        for i in range(events["step"].size):
            kind, name = str(events["kind"][i]), str(events["name"][i])
            if kind != EventKind.CONTROL and (kind, name) != (EventKind.CHECKPOINT, "failed"):
                continue
            value, old = decode(events["value"][i]), decode(events["old_value"][i])
            if name == "declared":
                self.units |= _unit_of(value)
                continue
            step, text = int(events["step"][i]), words(kind, name, value, old, units=self.units)
            time = float(events["time"][i]) - begin
            if name == "rollback":
                self._rollbacks[step] = max(time, self._rollbacks.get(step, time))
            if (step, text) not in self._found:
                self._found[step, text] = {"step": step, "time": time, "label": f"step {step}: {text}"}
                self.changed = True

    def all(self) -> list[dict[str, Any]]:
        """Return the newest marks: step, time (s) and label of each."""
        self.changed = False
        undone = [
            key
            for key, mark in self._found.items()
            if any(took_back(step, time, mark["step"], mark["time"]) for step, time in self._rollbacks.items())
        ]
        for key in undone:
            del self._found[key]
        return list(self._found.values())[-MOST:]


def make_marks(store: Store) -> list[dict[str, Any]]:
    """Make the marks of a whole run."""
    found, begin, events = Marks(), rows.progress(store).begin, store.table("events")
    if math.isnan(begin) and events["time"].size:
        begin = float(events["time"].min())
    found.take(events, begin)
    return found.all()


def _unit_of(declaration: Any) -> Mapping[str, str]:
    """Name and unit of a control, from the value of its event ``declared``."""
    if not isinstance(declaration, dict):
        return {}
    return {str(declaration.get("name")): str(declaration.get("unit", ""))}


def add_marks(figure: Any, marks: list[dict[str, Any]]) -> None:
    """Put ``marks`` into a figure that was made with marks."""
    # all lines have one source; `figure.select` would visit every model of the figure
    sources = (each.data_source for each in figure.renderers if hasattr(each, "data_source"))
    source = next((each for each in sources if each.name == "marks"), None)
    if source is not None:
        source.data = {key: [mark[key] for mark in marks] for key in ("step", "time", "label")}
