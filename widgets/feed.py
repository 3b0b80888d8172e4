"""The feed: a thread that reads a run's store twice a second and sends what is new to the panel in the browser.

It ends with the run, with ``close``, or with the kernel. Nothing is drawn or kept here: after a page reload the front
end says hello and gets everything again, from the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from widgets import wire
from widgets.facts import Facts
from workbench.errors import WorkbenchError
from workbench.plots import plots, theme
from workbench.run import ENDED
from workbench.telemetry.store import Store

PERIOD_S = 0.5
#: a page that said nothing by then is sent everything unasked: its hello may wait behind a running cell
UNASKED_AFTER_S = (1.5, 5.0)
#: after so many rows since the last full message the figures are sent anew, thinned, so that a page never fills up
RENEW_ROWS = 40_000
#: how long logs may still grow after the run has ended
LAST_ROWS_S = 3.0

Send = Callable[[dict[str, Any], list[bytes]], None]


class Feed:
    """Reads ``store`` and calls ``send(content, buffers)``; ``on_end(store, facts)`` once, after the last rows.

    ``status()`` is the run's state, or None to take it from the log. Methods may be called from any thread.
    """

    def __init__(
        self,
        store: Store,
        send: Send,
        *,
        status: Callable[[], str] | None = None,
        can_stop: bool = False,
        on_end: Callable[[Store, dict[str, Any]], None] | None = None,
    ) -> None:
        self._store = store
        self._send = send
        self._status = status
        self._can_stop = can_stop
        self._on_end = on_end
        self._facts = Facts(store)
        self._cursors: wire.Cursors = {}
        self._columns: dict[str, list[str]] = {}
        self._epoch = 0
        self._rows_sent = 0
        self._shown: dict[str, Any] = {}
        self._asked = False
        self._heard = False
        self._full = False
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._closing = False
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"panel-{store.run.name}", daemon=True)

    def start(self) -> None:
        """Begin to send, from a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; returns at once."""
        self._closing = True
        self._wake.set()

    def hello(self, have: str | None) -> None:
        """A page wants everything; ``have``: the version of BokehJS that it has loaded."""
        with self._lock:
            self._heard = True
            if have != wire.bokeh_version():
                self._send_bokeh()
            if self._thread.is_alive() and not self.ended.is_set():
                self._full = True
                self._wake.set()
            else:
                self._tick(full=True)

    def stop_asked(self) -> None:
        """The Stop button was pressed: show it at once."""
        self._asked = True
        self._wake.set()

    def _loop(self) -> None:
        began = time.monotonic()
        ended_at: float | None = None
        unasked = list(UNASKED_AFTER_S)
        while not self._closing:
            try:
                with self._lock:
                    if not self._heard and unasked and time.monotonic() - began > unasked[0]:
                        unasked.pop(0)
                        self._send_bokeh()
                        self._full = True
                    full, self._full = self._full, False
                    new_rows, over = self._tick(full=full)
            except WorkbenchError as error:
                self._send({"kind": "trouble", "text": str(error)}, [])
                return
            if over:
                ended_at = ended_at or time.monotonic()
                if (new_rows == 0 and self._all_ended()) or time.monotonic() - ended_at > LAST_ROWS_S:
                    break
            self._wake.wait(PERIOD_S)
            self._wake.clear()
        if not self._closing:
            self._finish()

    def _finish(self) -> None:
        """The last word: everything that a page needs is sent before ``ended`` is set."""
        with self._lock:
            if self._full:
                self._full = False
                self._tick(full=True)
            facts = dict(self._shown)
            if self._on_end is not None:
                self._on_end(self._store, facts)
            self.ended.set()

    def _tick(self, *, full: bool) -> tuple[int, bool]:
        """Read, send what is new; returns the rows read and whether the run is over."""
        read = self._store.refresh()
        self._facts.update()
        status = self._status() if self._status else self._facts.logged_state
        facts = self._facts.now(status=status, can_stop=self._can_stop, asked=self._asked, clock=time.time())
        sections = plots()
        if full or self._rows_sent > RENEW_ROWS:
            self._send_full(sections, facts)
        elif self._epoch:
            news, cursors = wire.delta(sections, self._store, self._cursors)
            if any(list(columns) != self._columns[name] for name, columns in news.items()):
                self._send_full(sections, facts)  # GPU figures appeared: their columns have other names
            elif news or facts != self._shown:
                self._cursors = cursors
                self._rows_sent += sum(wire.rows_of(columns) for columns in news.values())
                described, buffers = wire.pack(news)
                self._send({"kind": "delta", "epoch": self._epoch, "facts": facts, "columns": described}, buffers)
        self._shown = facts
        return read, status in ENDED

    def _send_full(self, sections: list[Any], facts: dict[str, Any]) -> None:
        news, self._cursors = wire.delta(sections, self._store, {})
        self._columns = {name: list(columns) for name, columns in news.items()}
        self._epoch += 1
        self._rows_sent = 0
        described, buffers = wire.pack(news)
        content = {
            "kind": "full",
            "epoch": self._epoch,
            "figures": wire.figure_items(sections, news),
            "colours": theme.COLOURS,
            "rank_colours": theme.RANK_COLOURS,
            "facts": facts,
            "columns": described,
        }
        self._send(content, buffers)

    def _send_bokeh(self) -> None:
        self._send({"kind": "bokeh", "version": wire.bokeh_version()}, [wire.bokeh_js()])

    def _all_ended(self) -> bool:
        from workbench.plots.rows import has_ended

        return has_ended(self._store)
