"""Takes what the training script logs and writes it to the rank's log, without a wait for the device in the step.

Ranks do not communicate: each writes what its own calls were, with their number, and the reader combines them
(``telemetry.logged``). So a value may be logged on some ranks, stages or steps only. Calls between two steps belong to
the step before them, those of an evaluation under the name ``eval/...``; what the script's top level logs is of step 0.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from workbench.core.records import ValueRecord
from workbench.core.user_code.cell_source import EVALUATION
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.user_log import UserLog
from workbench.engine.logged.media import LoggedMedia
from workbench.engine.logged.numbers import REDUCTIONS, OnTheWay, Running, plain_number
from workbench.engine.logged.pace import BIT, Pace
from workbench.engine.logged.recomputation import is_recomputing
from workbench.rundir.log import RankLogWriter

#: names of one run that are logged, of each kind; more are told once and left out
MOST_NAMES = 500
_LONGEST_NAME = 100


class LoggedValues(StepObserver):
    """The sink of ``user_log`` while the run trains."""

    def __init__(self, user_log: UserLog, strategy: Strategy, log: RankLogWriter) -> None:
        self._strategy = strategy
        self._log = log
        self._step = 0
        self._is_evaluating = False
        self._reductions: dict[str, str] = {}
        self._refused: set[str] = set()
        self._running: dict[str, Running] = {}
        self._unread: deque[tuple[int, Sequence[tuple[str, Running]], OnTheWay]] = deque()
        self._pace = Pace(strategy.spec.monitor.budget)
        self._skips = self._told_pace = False
        self._began = time.perf_counter()
        self._media = LoggedMedia(log, strategy)
        self._user_log = user_log
        user_log.attach(self)
        self._collect()

    def propose(self, step: int) -> int:
        if self._strategy.rank or not self._pace.skips_next():
            return 0
        if not self._told_pace:
            self._told_pace = True
            self._strategy.tell(
                "log_interval",
                f"{len(self._pace.frequent)} names are logged in each step, at {self._pace.cost:.1%} of its time: to "
                f"stay within half of --monitor-budget they are taken every {self._pace.interval} steps or so. Names "
                "that are logged more rarely, and those of evaluations, are always taken",
            )
        return BIT

    def begins(self, step: int, watch: int) -> None:
        self._began = time.perf_counter()
        self._finish_step()
        self._step, self._is_evaluating, self._skips = step, False, bool(watch & BIT)
        self._choose()
        self.cost_ms += (time.perf_counter() - self._began) * 1e3

    def phase(self, name: str) -> None:
        if (name == "evaluate") != self._is_evaluating:
            self._collect()
            self._is_evaluating = name == "evaluate"
            self._choose()

    def ends(self, step: int) -> None:
        began = time.perf_counter()
        self._finish_step()
        now = time.perf_counter()
        self.cost_ms += (now - began) * 1e3
        self._pace.account(self.cost_ms, (now - self._began) * 1e3, taken=not self._skips)

    def accounted(self, step: int, cost_ms: float) -> None:
        self.cost_ms = 0.0  # calls before the next step count there

    def _finish_step(self) -> None:
        if not self._is_evaluating:
            self._pace.came(self._step, self._running)
        self._collect()
        self._write()

    def _choose(self) -> None:
        is_short = self._skips and not self._is_evaluating
        self._user_log.skipped = self._pace.frequent if is_short else frozenset()

    def rolled_back(self, step: int) -> None:
        self._running.clear()
        self._unread.clear()
        self._media.finish()
        self._step = step

    def close(self) -> None:
        self._user_log.attach(None)
        self._user_log.skipped = frozenset()
        self._collect()
        self._write(wait=True)
        self._media.finish()

    def value(self, name: Any, value: Any, reduce: Any) -> None:
        """As ``UserLog.__call__``."""
        began = time.perf_counter()
        if not is_recomputing() and self._is_listed(name):
            self._add(name, value, "none" if reduce is None else reduce)
        self.cost_ms += (time.perf_counter() - began) * 1e3

    def image(self, name: Any, image: Any, every_rank: bool) -> None:
        """As ``UserLog.image``."""
        self._take_media("image", name, image, every_rank)

    def text(self, name: Any, text: Any, every_rank: bool) -> None:
        """As ``UserLog.text``."""
        self._take_media("text", name, text, every_rank)

    def _take_media(self, kind: str, name: Any, given: Any, every_rank: bool) -> None:
        began = time.perf_counter()
        here = self._strategy.coordinates
        if (every_rank or (here.dp == 0 and here.leads)) and not is_recomputing() and self._is_listed(name, "media"):
            fault = self._media.take(kind, self._step, self._prefixed(name), given)
            if fault:
                self._refuse(name, f"log.{kind}({name!r}, ...): {fault}")
        self.cost_ms += (time.perf_counter() - began) * 1e3

    def _add(self, name: str, value: Any, reduce: Any) -> None:
        if not isinstance(reduce, str) or reduce not in REDUCTIONS:
            self._refuse(
                name, f'log({name!r}, ..., reduce={reduce!r}): reduce is one of "mean", "sum", "max", "min" and None'
            )
            return
        first = self._reductions.setdefault(name, reduce)
        if first != reduce:
            self._refuse(
                f"{name} reduce",
                f"log({name!r}, ...) with reduce {reduce!r}, after {first!r}: {first!r} stays in force",
            )
        try:
            number = plain_number(value)
        except Exception as error:  # an object of the script's may raise anything when it is made a number
            self._refuse(name, f"log({name!r}, ...): {error or type(error).__name__}")
            return
        running = self._running.get(key := self._prefixed(name))
        if running is None:
            self._running[key] = Running(first, number)
        else:
            running.add(number)

    def _prefixed(self, name: str) -> str:
        return EVALUATION + name if self._is_evaluating else name

    def _is_listed(self, name: Any, kind: str = "") -> bool:
        """Whether ``name`` is a name, and one of the first ``MOST_NAMES``."""
        if not kind and isinstance(name, str) and name in self._reductions:
            return True
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
            text = f"a name is a text of 1 to {_LONGEST_NAME} printable characters"
            self._refuse("name", f"log({str(name)[:40]!r}, ...): {text}")
            return False
        if not kind and len(self._reductions) >= MOST_NAMES:
            self._refuse(
                "names",
                f"log: the first {MOST_NAMES} names are logged, and {name!r} and other new ones are left out: use "
                "fewer names, without a step or sample number in them",
            )
            return False
        return True

    def _refuse(self, what: str, text: str) -> None:
        if what not in self._refused and len(self._refused) < 2 * MOST_NAMES:
            self._refused.add(what)
            self._strategy.tell(f"log_{what}", text)

    def _collect(self) -> None:
        if self._running:
            items, self._running = list(self._running.items()), {}
            self._unread.append((self._step, items, OnTheWay([running.total for _, running in items])))

    def _write(self, *, wait: bool = False) -> None:
        while self._unread and (wait or self._unread[0][2].is_here):
            step, items, totals = self._unread.popleft()
            for (name, running), total in zip(items, totals.read(), strict=True):
                self._log.append(
                    ValueRecord(
                        step=step,
                        rank=self._strategy.rank,
                        name=name,
                        reduce=running.reduce,
                        value=running.value_of(total),
                        count=running.count,
                    )
                )
