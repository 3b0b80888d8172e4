"""Rows that a rollback took back: of steps that a rank then trained again, or never.

Such rows stay in the log, as they happened; what is read of it leaves them out. When a rank went back, it logged how
many rows of each table it had logged by then (``checkpoint`` event ``restored``), so none can be mistaken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.records import STEP_TABLES, EventKind
from workbench.events.decode import DecodedEvent, as_mapping, as_number, of_kind
from workbench.telemetry.columns import GrowingTable

#: a log may have been written by anybody
_MOST_RANKS = 2**20


@dataclass(frozen=True, slots=True)
class Rollback:
    """A rank went back to ``step`` at ``time``; ``rows``: of each table, how many rows it had logged before."""

    rank: int
    time: float
    step: int
    rows: dict[str, int]


def took_back(step: int, time: float, steps: Any, times: Any) -> Any:
    """Whether a return to ``step`` at ``time`` took back what was told at ``times`` of ``steps``: numbers or arrays."""
    return (steps > step) & (times <= time)


def standing(steps: Columns) -> Columns:
    """Rows of steps that still count. A rollback makes a rank train some steps again, or never: a row counts unless a
    later row of the same rank has the same or an earlier step. Rows of a rank are in the order they were written."""
    step, rank = steps["step"], steps["rank"]
    order = np.argsort(rank, kind="stable")
    # one number that grows over ranks and, within a rank, over steps: the smallest that follows has to be larger
    key = rank[order].astype(np.int64) * (int(step.max(initial=0)) + 1) + step[order]
    later = np.minimum.accumulate(key[::-1])[::-1]
    stands = np.ones(key.size, dtype=bool)
    stands[:-1] = key[:-1] < later[1:]
    if stands.all():
        return steps
    kept = np.sort(order[stands])
    return {name: values[kept] for name, values in steps.items()}


def without_taken_back(table: str, rows: Columns, events: Columns) -> Columns:
    """All rows of one of ``STEP_TABLES``, each rank's in the order in which they were written, that no rollback among
    ``events`` took back."""
    found = Rollbacks()
    for _ in found.take(events):
        pass
    return found.standing(table, rows)


def validated(events: Columns, name: str | None = None) -> list[DecodedEvent]:
    """The validations among rows of the table ``events`` (of one name, if it is given) whose values are numbers,
    without those of steps that a rollback among these rows took back."""
    found = Rollbacks()
    for _ in found.take(events):
        pass
    stands = found.stand(events)
    told = (event for event in of_kind(events, EventKind.VALIDATION, name) if stands[event.row])
    return [event for event in told if isinstance(event.value, int | float) and not isinstance(event.value, bool)]


class Rollbacks:
    """Knows them all, and how many rows of each rank were read. ``standing`` is asked of all rows, in their order."""

    def __init__(self) -> None:
        self.known: list[Rollback] = []
        self._read = {table: np.zeros(0, dtype=np.int64) for table in STEP_TABLES}

    def standing(self, table: str, rows: Columns) -> Columns:
        """Those of new rows that were not taken back."""
        rank = rows["rank"].astype(np.int64)
        sane = (rank >= 0) & (rank < _MOST_RANKS)
        news = np.bincount(rank[sane])
        before = self._read[table]
        size = max(news.size, before.size)
        before = np.pad(before, (0, size - before.size))
        self._read[table] = before + np.pad(news, (0, size - news.size))
        stands = np.ones(rank.size, dtype=bool)
        for back in self.known:
            to_come = back.rows.get(table, 0) - (before[back.rank] if back.rank < size else 0)
            if to_come > 0:
                own = np.flatnonzero(rank == back.rank)[:to_come]
                stands[own] &= rows["step"][own] <= back.step
        return rows if stands.all() else {name: values[stands] for name, values in rows.items()}

    def take(self, events: Columns) -> Iterator[Rollback]:
        """The rollbacks among new events."""
        for event in of_kind(events, EventKind.CHECKPOINT, "restored"):
            told = as_mapping(event.fields.get("rows"))
            counts = {table: as_number(told[table]) for table in STEP_TABLES if table in told}
            rows = {table: int(count) for table, count in counts.items() if 0 <= count < 2**63}
            if rows and 0 <= event.rank < _MOST_RANKS:
                back = Rollback(event.rank, event.time, event.step, rows)
                self.known.append(back)
                yield back

    def apply(self, back: Rollback, table: str, held: GrowingTable) -> None:
        """Let go of the rows of a table that were read before it was known that they were taken back."""
        rows, read = held.since(0), self._read[table]
        own = np.flatnonzero(rows["rank"] == back.rank)
        later = max(0, int(read[back.rank]) - back.rows.get(table, 0)) if back.rank < read.size else 0
        own = own[: own.size - later]
        kept = np.ones(len(rows["rank"]), dtype=bool)
        kept[own] = rows["step"][own] <= back.step
        if not kept.all():
            held.keep(kept)

    def stand(self, events: Columns) -> np.ndarray:
        """Which events tell of steps that were not taken back: a mask."""
        stands = np.ones(events["step"].size, dtype=bool)
        for back in self.known:
            taken = took_back(back.step, back.time, events["step"], events["time"])
            stands &= ~((events["rank"] == back.rank) & taken)
        return stands
