"""Events that the process that started a run logs about its ranks: deaths, and ends that ranks could not log."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from workbench.core.config import SPEC_FILE
from workbench.core.records import RESTARTING, SESSION_RANK, Event, EventKind
from workbench.errors import format_ranks
from workbench.events.outcome import Outcome, failure
from workbench.rundir.log import RankLogWriter
from workbench.rundir.state import LOST, state_of
from workbench.telemetry.store import Store


class SessionLog:
    """The log ``session/`` of a run, written by the process that owns its ranks. Methods may be called in any thread.

    ``ranks_are_free``: set when all ranks have finished with the run. ``unwritten``: events that could not be written,
    for example because the disk is full. ``advice``: what the user must do before the ranks can be used again ("":
    nothing).
    """

    def __init__(self, run: Path) -> None:
        self.ranks_are_free = threading.Event()
        self.unwritten: list[Event] = []
        self.advice = ""
        self._log = RankLogWriter(run, SESSION_RANK)
        self._dead: set[int] = set()
        self._left: set[int] = set()
        self._ended: set[int] = set()  # by the session

    def rank_died(self, rank: int, reason: str, step: int = 0) -> None:
        """Record that the process of a rank ended while the run needed it, after ``step`` steps."""
        if rank not in self._dead:
            self._dead.add(rank)
            self._write([_of_ranks("died", {"rank": rank, "reason": reason}, step)])

    def rank_left(self, rank: int, reason: str, step: int) -> None:
        """Record that the process of a rank ended, which another one may replace. Called again, it does nothing."""
        if rank not in self._dead | self._left:
            self._left.add(rank)
            because = failure("RankDied", reason)
            told = _of_ranks("replaced", {"rank": rank, "reason": reason}, step)
            self._write([told, _state(rank, RESTARTING, because, step)])

    def restarts(self, number: int, most: int, reason: str, step: int) -> None:
        """Record that all ranks begin again, after ``step`` steps, for the ``number``-th time of ``most``."""
        self._dead.clear()
        self._left.clear()
        self._ended.clear()
        self.advice = ""
        self._write([_of_ranks("restart", {"number": number, "of": most, "reason": reason}, step)])

    def stalled(self, why: Mapping[str, Any], step: int) -> None:
        """Record that ranks do not go on. ``why``: ``Diagnosis.to_value()``; ``step``: the last that was finished."""
        self._write([_of_ranks("stalled", dict(why), step)])

    def moving(self, after_s: float, step: int) -> None:
        """Record that ranks that had stalled go on, after so many seconds."""
        self._write([_of_ranks("moving", round(after_s, 1), step)])

    def session_ended(self, reason: str) -> None:
        """Record that the session of the ranks ended while they trained, by a person or with the kernel."""
        self._write([_state(SESSION_RANK, LOST, {"reason": reason})])

    def ranks_ended(self, ranks: Mapping[int, int], why: str, *, state: str = "failed") -> None:
        """Record that the session ends ranks that waited for a failed one. Such an end never counts as the cause.
        ``ranks``: rank -> the steps that it has finished; ``state``: theirs now."""
        self._dead.update(ranks)
        self._ended.update(ranks)
        self.advice = (
            f"{format_ranks(sorted(self._ended))} waited for it and {'was' if len(self._ended) == 1 else 'were'} "
            "ended: run %dist_up to start new ranks"
        )
        because = failure("PeerFailed", why, peer=True)
        self._write([_state(rank, state, because, step) for rank, step in ranks.items()])

    def end(self, outcomes: Mapping[int, Outcome | None], *, logged: Collection[int]) -> None:
        """Record how ranks ended where their own logs lack it, and close the log.

        ``outcomes``: the outcome that each rank returned (None: it returned none). ``logged``: ranks whose own logs say
        how they ended.
        """
        self._write(
            [
                _state(rank, *outcome.what_the_log_lacks(), step=outcome.step)
                for rank, outcome in outcomes.items()
                if outcome is not None and (rank not in logged or outcome.log_failure)
            ]
        )
        self._log.close()
        self.ranks_are_free.set()

    def _write(self, events: list[Event]) -> None:
        for event in events:
            self._log.append(event)
        self._log.flush()
        if self._log.failure is not None:
            self.unwritten += events


def record_exit_code(run: Path, code: int) -> None:
    """Record that the command whose ranks logged the run ``run`` ended with an exit code other than 0, where all that
    they could log is that they finished: Python tells a program nothing of a ``SystemExit`` that ends it.

    Does nothing for a folder that is no run, and for a run that ended otherwise.
    """
    if not (run / SPEC_FILE).is_file():
        return
    store = Store(run)
    store.refresh()
    ranks = store.spec.plan.ranks
    if state_of(store.table("events"), ranks) != "finished":
        return
    log = RankLogWriter(run, SESSION_RANK)
    # which of several ranks it was is not known
    log.append(_state(0 if ranks == 1 else SESSION_RANK, "failed", failure("SystemExit", str(code)), _last_step(store)))
    log.close()


def _last_step(store: Store) -> int:
    return int(max(store.table("steps")["step"], default=0))


def _of_ranks(name: str, value: object, step: int) -> Event:
    """Return an event about what became of ranks."""
    return Event(
        time=time.time(), step=step, rank=SESSION_RANK, kind=EventKind.RANK, name=name, value=json.dumps(value)
    )


def _state(rank: int, name: str, value: object, step: int = 0) -> Event:
    """Return an event that records the state of a rank on its behalf."""
    return Event(time=time.time(), step=step, rank=rank, kind=EventKind.STATE, name=name, value=json.dumps(value))


#: run directory -> log, for the runs that this process started
_logs: dict[Path, SessionLog] = {}


def open_log(run: Path) -> SessionLog:
    """Open the log of a run that this process starts; ``log_of`` returns it from then on."""
    log = _logs[run] = SessionLog(run)
    return log


def log_of(run: Path) -> SessionLog | None:
    """Return the log of a run that this process started; None for a run of another process."""
    return _logs.get(run)
