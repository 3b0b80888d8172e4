"""Evaluates the rules of alerts while a run trains: a thread on rank 0 that reads the run directory.

Only there are the rows of all ranks together, and no notebook has to be open. The thread looks every second, or less
often where a look is dear: it takes at most ``SHARE`` of the time. A step is looked at once every rank is two steps
further, and one look later than that, so that no row of it is still on its way.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.core import background
from workbench.core.records import END_STATES, EventKind
from workbench.core.rules.expressions import NAMES
from workbench.core.rules.own_alerts import OwnAlerts
from workbench.engine.watch.host.notify import Notifier, Target
from workbench.engine.watch.host.sampler import Progress
from workbench.errors import suggest
from workbench.events.alerts import BEGINS, Alert
from workbench.rundir.log import RankLogWriter

EVERY_S = 1.0
LONGEST_S = 60.0
#: of the time that the thread may take
SHARE = 0.005
#: seconds that the end of a run waits for the last rows of other ranks
LAST_ROWS_S = 3.0
#: steps after which a value that a condition names and nothing logged is told
LOGS_BY = 50


class AlertWatch:
    """``begin`` starts it, ``close`` looks at the last steps. ``name``: the run's, for notifications."""

    def __init__(self, run: Path, name: str, log: RankLogWriter, progress: Progress) -> None:
        self._run, self._name = run, name
        self._log, self._progress = log, progress
        self._own = OwnAlerts()
        self._notifiers: list[Notifier] = []
        self._engine: Any = None
        self._limit = self._rollbacks = 0
        self._told: set[tuple[str, str, int]] = set()
        self._told_missing: set[str] = set()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._rounds = background.Rounds(self._failed)

    def begin(self, own: OwnAlerts, targets: Mapping[str, str | Target | None]) -> None:
        """Log what the cell has set up, and start to look. ``targets``: who is told of each alert, by what the user
        calls it."""
        self._own = own
        self._declare(0)
        for name, target in targets.items():
            if target:
                self._notifiers.append(Notifier(target, functools.partial(self._notify_failed, name)))
        self._thread = background.thread(self._work, name="alerts", failed=self._failed)
        self._thread.start()

    def close(self, *, wait: bool = True) -> None:
        """Look at the last steps, and let notifications go out. ``wait``: for the last rows of other ranks."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        self._thread = None
        self._log.flush()
        with self._rounds:
            self._look(LAST_ROWS_S if wait else 0.0)
        for notifier in self._notifiers:
            notifier.close()

    def _work(self) -> None:
        pause = EVERY_S
        while not self._over.wait(pause):
            before = time.thread_time()
            with self._rounds:
                self._declare(self._progress.step)
                self._look()
            self._progress.alerting_s = time.thread_time()
            pause = min(LONGEST_S, max(EVERY_S, (time.thread_time() - before) / SHARE))

    def _declare(self, step: int) -> None:
        for declared in self._own.news():
            self._log.event(EventKind.CONTROL, "alert", declared, step=step)

    def _look(self, last_rows_s: float | None = None) -> None:
        """Tell what is new. ``last_rows_s``: nothing more will come after so many seconds."""
        from workbench.telemetry.alerts.steps import last_whole_step

        engine = self._read()
        limit = self._limit
        if last_rows_s is not None:
            self._await_rows(engine.store, last_rows_s)
            engine = self._read()
            limit = last_whole_step(engine.store, over=True)
        for alert in engine.look(limit):
            self._tell(alert)
        engine.tell_missing(1 if last_rows_s is not None else LOGS_BY)
        self._limit = last_whole_step(engine.store)

    def _read(self) -> Any:
        """The engine, with its store up to date; a new one after a rollback, which tells what is new only."""
        from workbench.telemetry.alerts.engine import AlertEngine
        from workbench.telemetry.store import DISPLAY_ROWS, Store

        def new() -> AlertEngine:
            store = Store(self._run, most=DISPLAY_ROWS, spare=True)
            store.refresh()
            return AlertEngine(store, self._own.conditions, self._condition_failed, self._not_logged)

        if self._engine is None:
            self._engine = new()
        self._engine.store.refresh()
        known = self._engine.store.rollbacks.known
        if len(known) != self._rollbacks:
            target = min(back.step for back in known[self._rollbacks :])
            self._rollbacks = len(known)
            self._told = {key for key in self._told if key[2] <= target}
            self._limit = min(self._limit, target)
            self._engine = new()
        return self._engine

    def _await_rows(self, store: Any, seconds: float) -> None:
        """Wait until all other ranks have logged their end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            events = store.table("events")
            ended = {
                int(rank)
                for rank, kind, name in zip(events["rank"], events["kind"], events["name"], strict=True)
                if kind == EventKind.STATE and name in END_STATES
            }
            if len(ended - {self._log.rank}) >= store.mesh.world_size - 1:
                return
            time.sleep(0.05)
            store.refresh()

    def _tell(self, alert: Alert) -> None:
        key = (alert.name, alert.state, alert.step)
        if key in self._told:
            return
        self._told.add(key)
        self._log.append(alert.to_event())
        for notifier in self._notifiers if alert.state == BEGINS else ():
            notifier.send(alert.message(self._name))

    def _condition_failed(self, name: str, error: Exception) -> None:
        text = f"alert {name!r}: its function raised {background.described(error)} and is asked no more"
        self._log.event(EventKind.WARNING, "alert_failed", text, step=self._progress.step)

    def _not_logged(self, name: str, missing: list[str], steps: int) -> None:
        if name in self._told_missing:
            return
        self._told_missing.add(name)
        text = (
            f"alert {name!r} waits for {', '.join(map(repr, missing))}, which no step has logged in {steps} steps and "
            f"which is no column of Run.metrics() ({suggest(missing[0], NAMES)}): log it, or set the alert again"
        )
        self._log.event(EventKind.WARNING, "alert_not_logged", text, step=self._progress.step)

    def _notify_failed(self, name: str, why: str) -> None:
        text = f"{name} failed: {why}. It is told once; training continues"
        self._log.event(EventKind.WARNING, "notify_failed", text, step=self._progress.step)

    def _failed(self, error: BaseException) -> None:
        text = f"alerts could not be evaluated: {background.described(error)}; training continues"
        self._log.event(EventKind.WARNING, "alerts_failed", text, step=self._progress.step)
