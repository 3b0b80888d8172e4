"""Records which ranks of a session are alive, which have ended, and why."""

from __future__ import annotations

from collections.abc import Iterable

from workbench.errors import RankDiedError


class Roster:
    """The ranks of a session. The reader thread of the rank server updates it; any thread may read it.

    ``pids``: process id of each rank. ``dead``: the ranks that have ended, with the reason for each.
    """

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        self.dead: dict[int, str] = {}
        self._last_output: dict[int, str] = {}
        self._announced: dict[int, str] = {}

    def announce_end(self, ranks: Iterable[int], why: str) -> None:
        """Announces that the session is about to kill ``ranks``; ``why`` becomes the recorded reason of their end."""
        self._announced.update(dict.fromkeys(ranks, why))

    def mark_dead(self, rank: int, reason: str, last_output: str = "") -> bool:
        """Records that a rank ended. Returns False when that was recorded before."""
        if rank in self.dead:
            return False
        self.dead[rank] = self._announced.get(rank, reason)
        self._last_output[rank] = last_output
        return True

    def forget_deaths(self, ranks: Iterable[int]) -> None:
        """Forgets that ``ranks`` ended: others take their place."""
        for rank in ranks:
            for told in (self.dead, self._last_output, self._announced):
                told.pop(rank, None)

    def select_alive(self, ranks: Iterable[int]) -> list[int]:
        """Returns those of ``ranks`` that have not ended."""
        return [rank for rank in ranks if rank not in self.dead]

    def make_error(self, rank: int, advice: str) -> RankDiedError:
        """Returns the error for a rank that ended: the reason, ``advice`` on what to do, and its last output."""
        tail = self._last_output.get(rank, "").strip()
        return RankDiedError(rank, f"{self.dead[rank]}; {advice}" + (f"\nIts last output:\n{tail}" if tail else ""))

    def raise_if_dead(self, ranks: Iterable[int], advice: str) -> None:
        """Raises ``RankDiedError`` for the first of ``ranks`` that has ended. ``advice``: what the user can do."""
        for rank in ranks:
            if rank in self.dead:
                raise self.make_error(rank, advice)
