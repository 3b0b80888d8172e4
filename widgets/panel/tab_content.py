"""What tabs show besides figures: events, ranks, samples, console lines, the history of controls.

``news(tabs)`` is what a page lacks of them, ``all(tabs)`` everything that is kept, both as JSON values.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from widgets.panel.console import Console
from widgets.panel.control_set import History, declared
from widgets.panel.event_list import EventList
from widgets.panel.summary import Facts
from workbench.core.columns import Columns
from workbench.core.records import EventKind
from workbench.telemetry.store import Store


class TabContent:
    """Of one run."""

    def __init__(self, store: Store, facts: Facts) -> None:
        self._store = store
        self._facts = facts
        self._event_list = EventList()
        self._history = History(store.run)
        self._console = Console(store.run, store.spec.plan.ranks)
        self._samples_sent = -1
        self._console_sent = False
        self._declared = False

    def take(self, events: Columns) -> None:
        """Take in new rows of the ``events`` table."""
        self._event_list.take(events, self._facts.began)
        self._history.take(events)
        self._declared |= bool(((events["kind"] == EventKind.CONTROL) & (events["name"] == "declared")).any())

    def news(self, tabs: Collection[str]) -> dict[str, Any]:
        """Parts that changed, of the tabs that are looked at."""
        out: dict[str, Any] = {}
        if entries := self._event_list.news():
            out["events"] = entries
        if (marks := self._event_list.marks()) is not None:
            out["marks"] = marks
        if (history := self._history.rows()) is not None:
            out["history"] = history
        if self._declared:  # knobs of the training script, after the page was told what can be set
            self._declared = False
            out["controls"] = declared(self._store)
        newest = self._facts.samples[-1]["step"] if self._facts.samples else -1
        if "samples" in tabs and newest != self._samples_sent:
            self._samples_sent = newest
            out["samples"] = list(self._facts.samples)
        if "console" in tabs:
            self._console.read()
            lines = self._console.news() if self._console_sent else self._console.all()
            self._console_sent = True
            if lines:
                out["console"] = lines
        return out

    def all(self) -> dict[str, Any]:
        """What every page needs at once; tabs that are not looked at are fed later."""
        self._samples_sent, self._console_sent = -1, False
        marks, history = self._event_list.marks(anew=True), self._history.rows(anew=True)
        return {"events": self._event_list.all(), "marks": marks, "history": history}
