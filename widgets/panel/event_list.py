"""Events in words: what the panel lists, folded over ranks, and marks in the figures."""

from __future__ import annotations

from typing import Any

from widgets.panel.fold import Folded
from workbench.core.columns import Columns
from workbench.events.decode import decode
from workbench.events.words import words
from workbench.plots.event_lines import Marks

MOST = 200
_QUIET = ("validation", "sample", "peak", "settings")
_BAD = {"failed", "died", "lost", "nonfinite"}
_NOTICED = {"warning", "refused", "log", "spike", "nonfinite", "gpu"}


def level_of(kind: str, name: str) -> str:
    """ "error", "warning" or "info"."""
    if name in _BAD or kind in _BAD:
        return "error"
    return "warning" if kind in _NOTICED else "info"


class EventList:
    """Events of a run, read on from where it stood. Times are seconds since ``begin`` (epoch)."""

    def __init__(self) -> None:
        self._folded = Folded(MOST, window=500)
        self._marks = Marks()

    def take(self, events: Columns, begin: float) -> None:
        """Take in rows of the ``events`` table."""
        self._marks.take(events, begin)
        for index in range(events["step"].size):
            kind, name = str(events["kind"][index]), str(events["name"][index])
            if kind in _QUIET:
                continue
            value, old = decode(events["value"][index]), decode(events["old_value"][index])
            step, rank, time = int(events["step"][index]), int(events["rank"][index]), float(events["time"][index])
            text = words(kind, name, value, old, units=self._marks.units)
            shown = {"step": step, "time": time - begin, "kind": kind, "name": name, "text": text}
            self._folded.add((step, kind, name, text), rank, **shown, level=level_of(kind, name))

    def news(self) -> list[dict[str, Any]]:
        """What came since the last call."""
        return self._folded.news()

    def all(self) -> list[dict[str, Any]]:
        """Everything that is kept."""
        return self._folded.all()

    def marks(self, *, anew: bool = False) -> list[dict[str, Any]] | None:
        """All marks when there are new ones (or ``anew``), else None."""
        return self._marks.all() if self._marks.changed or anew else None
