"""Selects the rows of figures that a page lacks, thins rows that are too many, and keeps the rows that were sent.

A figure gets rows only while its tab is visible. The rows that were sent are kept, so that they can be sent again to a
page that is reloaded, or thinned, without reading the log again. A figure is drawn once it has rows. When a plot module
raises an exception, the page shows a message in place of its figure, and the figure is retried every ``RETRY_S``
seconds; other figures are not affected.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from widgets.page import wire
from workbench.core.background import described
from workbench.core.columns import Columns
from workbench.plots import plots
from workbench.plots.base import Plot
from workbench.telemetry import row_views as rows
from workbench.telemetry.derive import cumulative_tokens
from workbench.telemetry.store import Store

#: a figure is thinned when it has this many times the rows of its first message
_TOO_MANY = 1.5
#: seconds until a figure that failed is retried
RETRY_S = 10.0


@dataclass
class News:
    """What is sent to the page.

    ``columns``: figure -> rows. ``replace``: the figures whose rows replace all earlier ones. ``figures``: figure items
    that the page draws, or draws again.
    """

    columns: dict[str, Columns] = field(default_factory=dict)
    replace: list[str] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.columns or self.figures)

    def drop(self, name: str) -> None:
        """Remove everything about one figure."""
        self.columns.pop(name, None)
        self.replace = [other for other in self.replace if other != name]
        self.figures = [figure for figure in self.figures if figure["name"] != name]


class _Sent:
    """The rows of one figure that were sent. ``due``: when it is read next; below 0: the page must draw it again.
    ``is_drawn``: whether the page shows the figure, which it does not while there are no rows."""

    def __init__(self, *, is_drawn: bool = False) -> None:
        self.is_drawn = is_drawn
        self.cursor: Any = None
        self.parts: list[Columns] = []
        self.count = 0
        self.due = 0.0

    def add(self, columns: Columns) -> None:
        self.parts.append(columns)
        self.count += wire.rows_of(columns)

    def set(self, columns: Columns) -> None:
        self.parts, self.count = [], 0
        self.add(columns)

    def whole(self) -> Columns:
        if len(self.parts) > 1:
            names = self.parts[0]
            self.parts = [{name: np.concatenate([part[name] for part in self.parts]) for name in names}]
        return self.parts[0]


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a figure could not be made, and the time of the next attempt."""

    text: str
    until: float


class Stream:
    """The rows of one run's figures. ``take(tabs, clock)`` returns what is new in those tabs.

    ``sections``: the plots (default: all). ``drawn=False``: the plots have rows but no figure that could show a
    message, so exceptions of a plot propagate.
    """

    def __init__(self, store: Store, sections: list[Plot] | None = None, *, drawn: bool = True) -> None:
        self._store = store
        self._plots = plots() if sections is None else sections
        self._drawn = drawn
        self._sent: dict[str, _Sent] = {}
        self._chosen: dict[str, Any] = {"rank": None, "layer": None}
        self._renew: set[str] = set()
        self._failed: dict[str, _Failure] = {}

    def choose(self, what: str, value: Any) -> None:
        """Select one rank or one layer (None: none). The figures that depend on it are filled again."""
        if self._chosen.get(what) != value:
            self._chosen[what] = value
            chosen = {plot.NAME for plot in self._plots if getattr(plot, "CHOICE", "") == what}
            self._renew |= chosen
            for name in chosen:
                self._failed.pop(name, None)

    def forget(self) -> None:
        """Forget what the page has: each figure is sent again, with the rows that are kept, when its tab is visible."""
        for sent in self._sent.values():
            sent.due = -1.0
        self._failed.clear()

    def renew(self) -> None:
        """Discard the rows that are kept: each figure is read again from the log when its tab is visible."""
        self._renew |= self._sent.keys()
        self._failed.clear()

    def kept(self, name: str) -> Columns:
        """Return all rows of a figure that were sent. A figure that was not read yet is read first."""
        if name not in self._sent or name in self._renew:
            self.take({plot.TAB for plot in self._plots if name == plot.NAME}, 0.0)
        return self._sent[name].whole()

    def take(self, tabs: Collection[str], clock: float) -> News:
        """Return what the page lacks of the figures in ``tabs``. ``clock``: monotonic time in seconds."""
        news = News()
        for plot in self._plots:
            failed = self._failed.get(plot.NAME)
            if plot.TAB not in tabs or (failed and clock < failed.until):
                continue
            try:
                self._take(plot, clock, news)
                self._failed.pop(plot.NAME, None)
            except (
                Exception
            ) as error:  # plots may be the user's own and raise anything; the page shows it in place of the figure
                if not self._drawn:
                    raise
                self._fail(plot, described(error), clock, news)
        return news

    def _take(self, plot: Plot, clock: float, news: News) -> None:
        sent = self._sent.get(plot.NAME)
        if sent is None or plot.NAME in self._renew:
            self._begin(plot, news, drawn=sent is not None and sent.due >= 0 and sent.is_drawn)
        elif sent.due < 0:
            self._send_new_rows(plot, sent, News())  # adds the newest rows to those that are kept
            self._draw(plot, self._sent[plot.NAME], news)
        elif clock >= sent.due:
            self._send_new_rows(plot, sent, news)
        else:
            return
        self._sent[plot.NAME].due = clock + getattr(plot, "PERIOD_S", 0.0)

    def _fail(self, plot: Plot, text: str, clock: float, news: News) -> None:
        """Send a message in place of the figure, and forget its rows; the next attempt reads it from the beginning."""
        before = self._failed.get(plot.NAME)
        self._failed[plot.NAME] = _Failure(text, clock + RETRY_S)
        self._sent.pop(plot.NAME, None)
        news.drop(plot.NAME)
        if before is None or before.text != text:
            news.figures.append(wire.failed_item(plot, text))

    def _columns(self, plot: Plot, cursor: Any) -> tuple[Columns, Any]:
        chosen = self._chosen.get(getattr(plot, "CHOICE", ""))
        more = () if chosen is None else (chosen,)
        columns, cursor = plot.columns(self._store, cursor, *more)
        wire.check(columns)
        return columns, cursor

    def _begin(self, plot: Plot, news: News, *, drawn: bool) -> None:
        columns, cursor = self._columns(plot, None)
        sent = self._sent[plot.NAME] = _Sent(is_drawn=drawn)
        sent.cursor = cursor
        sent.set(columns)
        self._renew.discard(plot.NAME)
        if drawn and sent.count:
            news.columns[plot.NAME] = columns
            news.replace.append(plot.NAME)
        else:
            self._draw(plot, sent, news)

    def _draw(self, plot: Plot, sent: _Sent, news: News) -> None:
        columns = sent.whole()
        if self._drawn:
            sent.is_drawn = sent.count > 0
            news.figures.append((wire.figure_item if sent.is_drawn else wire.missing_item)(plot, columns))
        news.columns[plot.NAME] = columns
        news.replace.append(plot.NAME)

    def _send_new_rows(self, plot: Plot, sent: _Sent, news: News) -> None:
        columns, cursor = self._columns(plot, sent.cursor)
        # the figure has other lines now, for example of a new kind of collective, or bars of more ranks
        has_grown = wire.height_of(plot, columns) not in (0, wire.height_of(plot, sent.whole()))
        if list(columns) != list(sent.parts[0]) or has_grown:
            self._begin(plot, news, drawn=False)
            return
        sent.cursor = cursor
        if not wire.rows_of(columns):
            return
        if self._drawn and not sent.is_drawn:
            sent.set(columns)
            self._draw(plot, sent, news)
            return
        if getattr(plot, "REPLACE", False):
            sent.set(columns)
            news.replace.append(plot.NAME)
        else:
            sent.add(columns)
            budget = rows.CELLS if "until" in columns else rows.BUDGET
            if sent.count > _TOO_MANY * budget:
                thin = getattr(plot, "thin", rows.thin)
                sent.set(columns := thin(sent.whole()))
                news.replace.append(plot.NAME)
        news.columns[plot.NAME] = columns


class Spine:
    """The rows by which figures and runs are aligned; they have no figure of their own.

    Columns: step, time (s since the first device sample), tokens (total of all ranks so far), loss, tps, grad_norm.
    """

    NAME = wire.SPINE
    TITLE = TAB = AXIS = ""

    def columns(self, store: Store, cursor: Any) -> tuple[Columns, Any]:
        """Return the rows since the cursor, and the new cursor."""
        steps, tokens, begin = cursor or (None, 0.0, None)
        metrics, steps = rows.metrics_since(store, steps)
        if begin is None and metrics["step"].size:
            begin = rows.progress(store).begin
            begin = float(metrics["time"][0]) if np.isnan(begin) else begin
        total = cumulative_tokens(metrics, store.mesh.world_size, before=tokens)
        out = {
            "step": metrics["step"].astype(float),
            "time": metrics["time"].astype(float) - (begin or 0.0),
            "tokens": total,
            **{name: metrics[name].astype(float) for name in ("loss", "tps", "grad_norm")},
        }
        tokens = float(total[-1]) if total.size else tokens
        return (rows.thin(out, of=["loss", "tps", "grad_norm"]) if cursor is None else out), (steps, tokens, begin)

    def figure(self, source: Any) -> Any:
        """Not available: other figures show these rows."""
        raise NotImplementedError("the spine has no figure")
