"""The panel's list of events, and the marks in its figures.

Identical events of several ranks are one entry. So are all events of one name of the monitor, such as a changed
interval: the entry says the newest. An alert takes the place of the event that tells the same. Alerts of one step stand
in the order of the computation, the origin above."""

from __future__ import annotations

from typing import Any

from widgets.panel.fold import Folded
from workbench.core.columns import Columns
from workbench.core.records import EventKind
from workbench.events.alerts import ENDS, Alert
from workbench.events.decode import decode
from workbench.events.words import words
from workbench.plots.event_lines import Marks

#: largest number of entries
MOST = 200
#: kinds that the list leaves out
_UNLISTED_KINDS = (EventKind.VALIDATION, EventKind.SAMPLE, EventKind.PEAK, EventKind.SETTINGS, EventKind.LAYERS)
#: names of events that are errors, whatever their kind
_ERROR_NAMES = ("failed", "died", "replaced", "lost")
_WARNING_KINDS = (EventKind.WARNING, EventKind.REFUSED, EventKind.LOG, EventKind.SPIKE, EventKind.GPU)


def level_of(kind: str, name: str) -> str:
    """Return the severity of an event: "error", "warning" or "info"."""
    if kind == EventKind.NONFINITE or name in _ERROR_NAMES:
        return "error"
    return "warning" if kind in _WARNING_KINDS else "info"


#: what puts the alerts of one step, which have one time, into their order in a list that has the newest above
_ORDER_S = 1e-6


class EventList:
    """Collects the events of a run. Times of entries are seconds since the begin that ``take`` is given."""

    def __init__(self) -> None:
        self._folded = Folded(MOST, window=500)
        self._marks = Marks()

    def take(self, events: Columns, begin: float) -> None:
        """Add rows of the ``events`` table. ``begin``: the begin of the run, in seconds since the epoch."""
        self._marks.take(events, begin)
        for index in range(events["step"].size):
            kind, name = str(events["kind"][index]), str(events["name"][index])
            if kind in _UNLISTED_KINDS:
                continue
            value, old = decode(events["value"][index]), decode(events["old_value"][index])
            step, rank, time = int(events["step"][index]), int(events["rank"][index]), float(events["time"][index])
            text = words(kind, name, value, old, units=self._marks.units)
            shown: dict[str, Any] = {"step": step, "time": time - begin, "kind": kind, "name": name, "text": text}
            shown["level"] = level_of(kind, name)
            if kind == EventKind.ALERT:
                self._take_alert(Alert.from_value(name, value, step=step), rank, shown)
            elif kind == EventKind.SPIKE:
                self._folded.add((step, f"{kind} {name}"), rank, **shown)
            elif kind == EventKind.MONITOR:
                self._folded.renew((kind, name), rank, **shown)
            else:
                self._folded.add((step, kind, name, text), rank, **shown)

    def _take_alert(self, alert: Alert, rank: int, shown: dict[str, Any]) -> None:
        if alert.event.startswith(EventKind.NONFINITE):
            return  # that event says more
        level = "info" if alert.state == ENDS else "warning"
        shown |= {"level": level, "time": shown["time"] - _ORDER_S * alert.order}
        key = (alert.step, alert.event or f"{EventKind.ALERT} {alert.name} {alert.state}")
        self._folded.renew(key, alert.rank if alert.rank >= 0 else rank, again=0, **shown)

    def news(self) -> list[dict[str, Any]]:
        """Return the entries that are new or changed since the last call."""
        return self._folded.news()

    def all(self) -> list[dict[str, Any]]:
        """Return all entries that are kept."""
        return self._folded.all()

    def marks(self, *, anew: bool = False) -> list[dict[str, Any]] | None:
        """Return all marks when there are new ones or ``anew`` is true, else None."""
        return self._marks.all() if self._marks.changed or anew else None
