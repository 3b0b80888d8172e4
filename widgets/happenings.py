"""Events in words: what the panel lists, folded over ranks, and marks in the figures."""

from __future__ import annotations

import json
from typing import Any

from widgets.fold import Folded
from workbench.telemetry.store import Columns

MOST = 200
_MOST_MARKS = 100
_LONGEST = 300
_QUIET = ("validation", "sample", "peak")
_BAD = {"failed", "died", "lost", "nonfinite"}
_NOTICED = {"warning", "refused", "log", "spike", "nonfinite", "gpu"}


def level_of(kind: str, name: str) -> str:
    """ "error", "warning" or "info"."""
    if name in _BAD or kind in _BAD:
        return "error"
    return "warning" if kind in _NOTICED else "info"


def words(kind: str, name: str, value: Any, old: Any) -> str:
    """One line for people."""
    if kind == "state":
        failed = isinstance(value, dict) and "ename" in value
        text = f"{name}: {value['ename']}: {value.get('evalue', '')}" if failed else name
    elif kind == "control":
        change = (
            f" {short(old)} → {short(value)}" if old is not None else f" {short(value)}" if value is not None else ""
        )
        text = f"{name}{change}"
    elif kind == "refused" and isinstance(value, dict):
        asked = "" if value.get("value") is None else f" {short(value['value'])}"
        text = f"{name}{asked}: {value.get('reason', 'no reason known')}"
    elif kind == "rank" and isinstance(value, dict):
        text = f"rank {value.get('rank')} {name}: {value.get('reason', 'no reason known')}"
    elif kind == "warning":
        text = short(value if value is not None else name)
    elif old is not None:
        text = f"{name} {short(old)} → {short(value)}"
    else:
        text = f"{name} {short(value)}" if value is not None else name
    return text[:_LONGEST]


def short(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(part)}" for key, part in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


class Happenings:
    """Events of a run, read on from where it stood. Times are seconds since ``begin`` (epoch)."""

    def __init__(self) -> None:
        self._folded = Folded(MOST, window=500)
        self._marks: dict[tuple[int, str], dict[str, Any]] = {}
        self._marks_changed = False

    def take(self, events: Columns, begin: float) -> None:
        """Take in rows of the ``events`` table."""
        for index in range(events["step"].size):
            kind, name = str(events["kind"][index]), str(events["name"][index])
            if kind in _QUIET:
                continue
            value, old = json.loads(events["value"][index]), json.loads(events["old_value"][index])
            step, rank, time = int(events["step"][index]), int(events["rank"][index]), float(events["time"][index])
            text = words(kind, name, value, old)
            shown = {"step": step, "time": time - begin, "kind": kind, "name": name, "text": text}
            self._folded.add((step, kind, name, text), rank, **shown, level=level_of(kind, name))
            if kind in ("control", "checkpoint") and (step, text) not in self._marks:
                self._marks[step, text] = {"step": step, "time": time - begin, "label": f"step {step}: {text}"}
                self._marks_changed = True

    def news(self) -> list[dict[str, Any]]:
        """What came since the last call."""
        return self._folded.news()

    def all(self) -> list[dict[str, Any]]:
        """Everything that is kept."""
        return self._folded.all()

    def marks(self, *, anew: bool = False) -> list[dict[str, Any]] | None:
        """All marks when there are new ones (or ``anew``), else None."""
        if not (self._marks_changed or anew):
            return None
        self._marks_changed = False
        return list(self._marks.values())[-_MOST_MARKS:]
