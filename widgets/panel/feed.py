"""The feed: a thread that reads a run's store and sends what is new to the panel in the browser.

It ends when the run ends, when ``close`` is called, or with the kernel. ``widgets.page.pace`` sets the interval of its
rounds. Only figures of visible tabs get rows. A page that is loaded or reloaded sends ``hello`` and receives
everything. When a round fails, the page is told, and the next round sends everything again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from widgets.page import wire
from widgets.page.pace import Pace
from widgets.panel import compare, control_set
from widgets.panel.stream import Spine, Stream
from widgets.panel.summary import JUDGE_EVERY_S, Facts
from widgets.panel.tab_content import TabContent
from workbench.core import background
from workbench.errors import WorkbenchError
from workbench.plots import theme
from workbench.plots.base import TABS
from workbench.run.branching import START_TIMEOUT_S
from workbench.rundir.state import ENDED
from workbench.telemetry.row_views import has_ended
from workbench.telemetry.store import Store

#: seconds after which everything is sent to a page that has sent nothing: its hello may wait behind a running cell
UNASKED_AFTER_S = (1.5, 5.0)
#: seconds after the end of the run in which its logs may still grow
LAST_ROWS_S = 3.0
#: seconds between two tables of ranks
RANKS_EVERY_S = 1.0
#: largest number of seconds between two messages; after several times as long a page says that the kernel is gone
#: (``static/link.js``)
HEARTBEAT_S = 4.0
#: seconds after a command in which rounds are more frequent, and the interval of these rounds
EAGER_FOR_S, EAGER_PERIOD_S = 1.5, 0.15
#: smallest number of seconds to the next round after one that failed
RETRY_S = 2.0
ALL_TABS = frozenset({*TABS, "console", "controls", "compare"})
DEFAULT_TAB = "overview"

Send = Callable[[dict[str, Any], list[bytes]], None]


class Feed:
    """Reads ``store``, sends messages with ``send(content, buffers)``, and calls ``on_end(store, facts)`` at the end.

    ``status()`` returns the run's state; without it the state is that of the log. ``can_control``: whether the page may
    send commands. ``busy()`` returns whether a cell is running in the kernel. ``run``: the number of this run in the
    panel; ``names``: the names of all its runs. Methods may be called from any thread.
    """

    def __init__(
        self,
        store: Store,
        send: Send,
        *,
        status: Callable[[], str] | None = None,
        can_control: bool = False,
        busy: Callable[[], bool] = lambda: False,
        on_end: Callable[[Store, dict[str, Any]], None] | None = None,
        run: int = 0,
        names: list[str] | None = None,
    ) -> None:
        self._store = store
        self._send = send
        self._status = status
        self._can_control = can_control
        self._busy = busy
        self._on_end = on_end
        self._run = run
        self._names = names or [store.run.name]
        self._facts = Facts(store)
        self._tab_content = TabContent(store, self._facts)
        self._stream = Stream(store)
        self._spine = Stream(store, [Spine()], drawn=False)
        self._pace = Pace()
        self._views: list[dict[str, Any]] = []
        self._epoch = 0
        self._rollbacks = 0
        self._shown: dict[str, Any] = {}
        self._ranks_due = 0.0
        self._heard = False
        self._full = False
        self._once = False  # the last round did work that is not repeated, such as drawing figures
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._eager_until = 0.0
        self._closing = False
        self._over = False
        self._rounds = background.Rounds(self._tell_failure)
        self.ended = threading.Event()
        self._thread = background.thread(self._loop, name=f"panel-{store.run.name}", failed=self._end_by)

    def start(self) -> None:
        """Start the thread that sends messages."""
        self._thread.start()

    def close(self) -> None:
        """Ask the thread to end, without waiting for it."""
        self._closing = True
        self._wake.set()

    def hello(self, have: str | None) -> None:
        """Send everything to a page. ``have``: the version of BokehJS that the page has loaded, or None."""
        with self._lock:
            self._heard = True
            self._pace.heard(time.monotonic(), self._pace.sent)
            self._full = True
            with self._rounds:
                if have != wire.bokeh_version():
                    self._send_bokeh()
            self._now_or_soon()

    def look(self, views: list[dict[str, Any]], seq: int | None = None) -> None:
        """Take what the page's views show (``run``, ``tab``, ``visible``), and the number of the drawn message."""
        with self._lock:
            before, self._views = self.tabs(), views
            visible = any(view.get("visible") for view in views) if views else True
            hidden = not self._pace.visible
            self._pace.heard(time.monotonic(), seq, visible)
            if self.tabs() - before or (hidden and visible):
                self._now_or_soon()

    def choose(self, what: str, value: Any) -> None:
        """Select a rank (``what`` "rank") or a layer ("layer"), None: none; or a logged image or text ("logged")."""
        with self._lock:
            if what == "logged":
                self._tab_content.logged_media.choose(value)
            else:
                self._stream.choose(what, value)
            self._now_or_soon()

    def tabs(self) -> set[str]:
        """Return the visible tabs of this run."""
        own = {str(v.get("tab")) for v in self._views if v.get("visible") and v.get("run", 0) == self._run}
        return own if self._views else {DEFAULT_TAB}

    def update_soon(self) -> None:
        """Start a round now, and more frequent rounds for ``EAGER_FOR_S`` seconds, to show the answer to a command."""
        self._eager_until = time.monotonic() + EAGER_FOR_S
        self._wake.set()

    def _now_or_soon(self) -> None:
        if self._thread.is_alive() and not self.ended.is_set():
            self._wake.set()
        elif self._epoch or self._full:
            with self._rounds:
                self._tick(time.monotonic())

    def _loop(self) -> None:
        began = time.monotonic()
        ended_at: float | None = None
        unasked = list(UNASKED_AFTER_S)
        while not self._closing:
            clock, cost = time.monotonic(), time.thread_time()
            new_rows = 0
            with self._lock, self._rounds:
                if not self._heard and unasked and clock - began > unasked[0]:
                    unasked.pop(0)
                    self._send_bokeh()
                    self._full = True
                self._once = self._full
                new_rows = self._tick(clock)
            if not self._once:
                self._pace.spent(time.thread_time() - cost)
            if self._over:
                ended_at = ended_at or clock
                has_all = new_rows == 0 and not self._rounds.failing and has_ended(self._store)
                if has_all or time.monotonic() - ended_at > LAST_ROWS_S:
                    break
            self._wake.wait(max(0.0, clock + self._period_s() - time.monotonic()))
            self._wake.clear()
        if not self._closing:
            self._finish()
            self._wait_for_branch()

    def _period_s(self) -> float:
        """Return the seconds from the start of this round to the start of the next."""
        now = time.monotonic()
        period = self._pace.period_s(now, self._busy())
        if now < self._eager_until:
            period = min(period, EAGER_PERIOD_S)
        if self._over or not self._heard:
            period = min(period, 0.5)
        return max(period, RETRY_S) if self._rounds.failing else period

    def _tell_failure(self, error: Exception) -> None:
        """Tell the page that a round failed."""
        if isinstance(error, WorkbenchError):
            text = str(error)
        else:
            problem = background.described(error)
            text = f"The panel could not be updated ({problem}). Retrying; the training is not affected."
        self._send({"kind": "trouble", "text": text, "detail": background.traceback_of(error)}, [])

    def _end_by(self, error: BaseException) -> None:
        """End the feed after an error that ended the thread: tell the page, and release those who wait for the end."""
        self.ended.set()
        text = f"The panel is no longer updated ({background.described(error)}): %dist_watch shows the run again"
        self._send({"kind": "trouble", "text": text, "detail": background.traceback_of(error)}, [])

    def _wait_for_branch(self) -> None:
        """Keep sending the facts of a run that ended for a branch until they name the branch."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._closing and self._facts.awaits_branch and time.monotonic() < deadline:
            self._wake.wait(JUDGE_EVERY_S)
            with self._lock, self._rounds:
                self._tick(time.monotonic())

    def _finish(self) -> None:
        """Send everything that a page still lacks, then set ``ended``."""
        with self._lock:
            with self._rounds:
                self._tick(time.monotonic(), last=True)
            with self._rounds:
                if self._on_end is not None:
                    self._on_end(self._store, dict(self._shown))
            self.ended.set()

    def _tick(self, clock: float, *, last: bool = False) -> int:
        """Read the store and send what is new. Returns the number of rows read, and sets ``_over``: the run is over."""
        known = self._status() if self._status else None
        self._over = known in ENDED
        if self._rounds.failing:  # the page lacks what the failed round took but did not send
            self._full = self._full or self._epoch > 0
        read = self._store.refresh()
        if len(self._store.rollbacks.known) != self._rollbacks:
            self._rollbacks = len(self._store.rollbacks.known)
            self._stream.renew()
            self._spine.renew()
            self._facts.rolled_back()
        events = self._facts.update(None if last else clock)  # the last verdict is on all steps, as the report's
        self._tab_content.take(events)
        status = known or self._facts.logged_state
        self._over = status in ENDED
        facts = self._facts.now(status=status, can_control=self._can_control, clock=time.time())
        if self._full:
            self._send_full(facts, clock)
            self._full = False
            self._send_delta(facts, clock)
        elif self._epoch and (last or self.ended.is_set() or self._pace.ready(clock)):
            self._send_delta(facts, clock)
        self._shown = facts if not self._epoch else self._shown
        return read

    def _send_full(self, facts: dict[str, Any], clock: float) -> None:
        self._epoch += 1
        self._stream.forget()
        described, buffers = wire.pack({wire.SPINE: self._spine.kept(wire.SPINE)})
        content = {
            "kind": "full",
            "runs": self._names,
            "theme": {"colours": theme.COLOURS, "ranks": theme.RANK_COLOURS, "phases": theme.PHASES},
            "facts": facts,
            "columns": described,
            "extra": self._tab_content.all(),
            "controls": control_set.declared(self._store),
            "compare": compare.figures(self._names) if len(self._names) > 1 and self._run == 0 else [],
        }
        self._shown = facts
        self._ranks_due = 0.0
        self._emit(content, buffers, clock)

    def _send_delta(self, facts: dict[str, Any], clock: float) -> None:
        state = self._pace.state(clock, self._busy())
        tabs = set(ALL_TABS) if state == "blind" else self.tabs() if state == "open" else set()
        news = self._stream.take(tabs, clock)
        self._once |= bool(news.figures)
        spine = self._spine.take({""}, clock)
        news.columns.update(spine.columns)
        news.replace += spine.replace
        if "ranks" in tabs and clock >= self._ranks_due:
            self._ranks_due = clock + RANKS_EVERY_S
            news.columns["rank_table"] = self._facts.ranks.columns()
            news.replace.append("rank_table")
        changed = {name: value for name, value in facts.items() if self._shown.get(name) != value}
        extra = self._tab_content.news(tabs, None if self._over else clock)
        self._shown = facts
        if not (news or changed or extra) and clock - self._pace.sent_at < HEARTBEAT_S:
            return
        described, buffers = wire.pack(news.columns)
        content = {"kind": "delta", "facts": changed, "columns": described, "replace": news.replace}
        self._emit({**content, "figures": news.figures, "extra": extra}, buffers, clock)

    def _emit(self, content: dict[str, Any], buffers: list[bytes], clock: float) -> None:
        numbers = {"run": self._run, "epoch": self._epoch, "seq": self._pace.sending(clock)}
        self._send({**content, **numbers}, buffers)

    def _send_bokeh(self) -> None:
        self._send({"kind": "bokeh", "version": wire.bokeh_version()}, [wire.bokeh_js()])
