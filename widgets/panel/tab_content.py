"""The content of tabs besides figures: events, marks, samples, what the cell logged, console lines, and controls with
their history."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from widgets.panel.console import Console
from widgets.panel.control_set import History, declared
from widgets.panel.event_list import EventList
from widgets.panel.logged_media import LoggedMedia
from widgets.panel.summary import Facts
from workbench.core.columns import Columns
from workbench.core.records import EventKind
from workbench.telemetry.store import Store


class TabContent:
    """The content of one run's tabs, as JSON values: ``news`` returns what changed, ``all`` what a page starts with."""

    def __init__(self, store: Store, facts: Facts) -> None:
        self._store = store
        self._facts = facts
        self._event_list = EventList()
        self._history = History(store.run)
        self._console = Console(store.run, store.spec.plan.ranks)
        self.logged_media = LoggedMedia(store)
        self._samples_sent = -1
        self._console_sent = False
        self._declared = False

    def take(self, events: Columns) -> None:
        """Add new rows of the ``events`` table."""
        self._event_list.take(events, self._facts.began)
        self._history.take(events)
        self._declared |= bool(((events["kind"] == EventKind.CONTROL) & (events["name"] == "declared")).any())

    def news(self, tabs: Collection[str], clock: float | None = None) -> dict[str, Any]:
        """Return what changed since the last call. Samples and console lines are included only for visible ``tabs``.

        ``clock``: monotonic time in seconds, which bounds the rate of logged images; None: it is not bounded.
        """
        out: dict[str, Any] = {}
        if entries := self._event_list.news():
            out["events"] = entries
        if (marks := self._event_list.marks()) is not None:
            out["marks"] = marks
        if (history := self._history.rows()) is not None:
            out["history"] = history
        if self._declared:  # the training script declared knobs after the page received the controls
            self._declared = False
            out["controls"] = declared(self._store)
        newest = self._facts.samples[-1]["step"] if self._facts.samples else -1
        if "samples" in tabs and newest != self._samples_sent:
            self._samples_sent = newest
            out["samples"] = list(self._facts.samples)
        if "samples" in tabs:
            out.update(self.logged_media.news(clock))
        if "console" in tabs:
            self._console.read()
            lines = self._console.news() if self._console_sent else self._console.all()
            self._console_sent = True
            if lines:
                out["console"] = lines
        return out

    def all(self) -> dict[str, Any]:
        """Return what a page needs at once; samples and console lines follow when their tabs are opened."""
        self._samples_sent, self._console_sent = -1, False
        self.logged_media.forget()
        marks, history = self._event_list.marks(anew=True), self._history.rows(anew=True)
        return {"events": self._event_list.all(), "marks": marks, "history": history}
