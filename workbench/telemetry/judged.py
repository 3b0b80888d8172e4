"""The verdict on the newest steps of a run that is read as it grows. All that shows the verdict shows this one.

``judged(store)`` reads on and judges when there are new rows. A panel, whose parts are drawn at different moments,
calls ``hold(store)`` instead: from then on ``judged`` gives what the last ``hold`` found, so that the card, the bars
and the timeline of one moment agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd

from workbench.core.columns import Columns
from workbench.telemetry import row_views as rows
from workbench.telemetry.phases import posting_time
from workbench.telemetry.store import Store, empty
from workbench.telemetry.verdict import RECORDED, WARM_UP, WINDOW, Verdict, verdict

_COLUMNS = ("step", "rank", "phase", "micro_batch", "start_ms", "duration_ms")


@dataclass(frozen=True, slots=True)
class Judged:
    """``verdict``, None before there are phases, and the phases of the steps that it is about."""

    verdict: Verdict | None
    phases: Columns

    @property
    def slow_rank(self) -> int | None:
        """The rank that the verdict calls a straggler."""
        slow = None if self.verdict is None else self.verdict.straggler
        return None if slow is None else slow.rank


class _Judge:
    """Reads new phases and collectives of a store, and keeps those of the newest steps."""

    def __init__(self, store: Store) -> None:
        self._cursor: Any = None
        self._kept = {name: empty("phases")[name] for name in _COLUMNS}
        self._calls_cursor: Any = None
        self._posted: pd.Series | None = None
        self.rollbacks = len(store.rollbacks.known)
        self.is_held = False
        self.found = Judged(None, self._kept)

    def read(self, store: Store) -> Judged:
        phases, self._cursor = rows.whole_steps(store, "phases", self._cursor)
        if phases["step"].size:
            joined = {name: np.concatenate([self._kept[name], phases[name]]) for name in _COLUMNS}
            self._kept = _newest_steps(joined, WARM_UP + WINDOW)
        posted = self._read_collectives(store)
        if self._kept["step"].size and (posted or phases["step"].size):
            found = verdict(self._kept, store.mesh, self._posted)
            shown = (
                self._kept["step"] >= found.steps[0] if found.count else np.ones(self._kept["step"].size, dtype=bool)
            )
            self.found = Judged(found, {name: values[shown] for name, values in self._kept.items()})
        return self.found

    def _read_collectives(self, store: Store) -> bool:
        """Read new collectives; whether there were any."""
        calls, self._calls_cursor = rows.whole_steps(store, "collectives", self._calls_cursor)
        if not calls["step"].size:
            return False
        posted = posting_time(calls)
        joined = posted if self._posted is None else pd.concat([self._posted, posted])
        steps = joined.index.get_level_values("step")
        self._posted = joined[steps >= np.unique(steps)[-RECORDED:][0]] if len(joined) else joined
        return True


_judges: WeakKeyDictionary[Store, _Judge] = WeakKeyDictionary()


def _judge_of(store: Store) -> _Judge:
    judge = _judges.get(store)
    if judge is None or judge.rollbacks != len(store.rollbacks.known):
        is_held = judge is not None and judge.is_held
        judge = _judges[store] = _Judge(store)
        judge.is_held = is_held
        if is_held:
            judge.read(store)
    return judge


def judged(store: Store) -> Judged:
    """The verdict on what the store has read, or on what it had read at the last ``hold``."""
    judge = _judge_of(store)
    return judge.found if judge.is_held else judge.read(store)


def hold(store: Store) -> Judged:
    """Judge what the store has read by now, for everything that asks until the next call."""
    judge = _judge_of(store)
    judge.is_held = True
    return judge.read(store)


def _newest_steps(phases: Columns, count: int) -> Columns:
    taken = phases["step"] >= np.unique(phases["step"])[-count:][0]
    return {name: values[taken] for name, values in phases.items()}
