"""What only the process that started a run knows of it, and what it logs for ranks that cannot."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from workbench.core.records import SESSION_RANK, Event, EventKind
from workbench.errors import format_ranks
from workbench.events.outcome import Outcome, failure
from workbench.rundir.log import RankLogWriter


class OwnedRun:
    """What only the session that started a run has. ``released`` is set when its ranks are free again. ``unwritten``:
    events for which there was no room on the disk. ``advice``: what to do before ranks can be used again."""

    def __init__(self, path: Path) -> None:
        self.log = RankLogWriter(path, SESSION_RANK)
        self.released = threading.Event()
        self.unwritten: list[Event] = []
        self.advice = ""
        self._dead: set[int] = set()

    def rank_died(self, rank: int, reason: str) -> None:
        if rank not in self._dead:
            self._dead.add(rank)
            self._tell([Event(time=time.time(), step=0, rank=SESSION_RANK, kind=EventKind.RANK, name="died",
                              value=json.dumps({"rank": rank, "reason": reason}))])  # fmt: skip

    def ranks_ended(self, ranks: Sequence[int], why: str) -> None:
        """Their end is no death that explains anything: it is the consequence of another's."""
        self._dead.update(ranks)
        self.advice = (
            f"{format_ranks(ranks)} waited for it and {'was' if len(ranks) == 1 else 'were'} ended: run %dist_up"
        )
        told = failure("PeerFailed", why, peer=True)
        self._tell([_state(rank, "failed", told) for rank in ranks])

    def end(self, answers: dict[int, Outcome | None], *, logged: Collection[int]) -> None:
        """Say for the ranks what their logs do not, and close."""
        told = []
        for rank, answer in answers.items():
            if answer is not None and (rank not in logged or answer.log_failure):
                told.append(_state(rank, *answer.what_the_log_lacks(), step=answer.step))
        self._tell(told)
        self.log.close()
        self.released.set()

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            self.log.append(event)
        self.log.flush()
        if self.log.failure is not None:
            self.unwritten += events


def _state(rank: int, name: str, value: object, step: int = 0) -> Event:
    """A rank's state, told on its behalf."""
    return Event(time=time.time(), step=step, rank=rank, kind=EventKind.STATE, name=name, value=json.dumps(value))
