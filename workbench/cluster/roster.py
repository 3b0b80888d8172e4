"""Records which ranks of a session are alive, which have ended, and why."""

from __future__ import annotations

from collections.abc import Iterable

from workbench.errors import RankDiedError


class Roster:
    """The ranks of a session. The thread that reads from the rank server updates it; any thread may read it.

    ``pids``: process id of each rank. ``dead``: ranks that ended, and why.
    """

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        self.dead: dict[int, str] = {}
        self._last_output: dict[int, str] = {}
        self._ending: dict[int, str] = {}

    def will_end(self, ranks: Iterable[int], why: str) -> None:
        """Announces that the session ends these ranks; ``why`` replaces the signal as the reason of their end."""
        self._ending.update(dict.fromkeys(ranks, why))

    def lost(self, rank: int, reason: str, last_output: str = "") -> bool:
        """Records that a rank ended; False if that is known already."""
        if rank in self.dead:
            return False
        self.dead[rank] = self._ending.get(rank, reason)
        self._last_output[rank] = last_output
        return True

    def alive(self, ranks: Iterable[int]) -> list[int]:
        """Those of ``ranks`` that have not ended."""
        return [rank for rank in ranks if rank not in self.dead]

    def error(self, rank: int, advice: str) -> RankDiedError:
        """The error for a rank that ended: the reason, what to do, and its last output."""
        tail = self._last_output.get(rank, "").strip()
        return RankDiedError(rank, f"{self.dead[rank]}; {advice}" + (f"\nIts last output:\n{tail}" if tail else ""))

    def check(self, ranks: Iterable[int], advice: str) -> None:
        """Raise ``error`` for the first of ``ranks`` that ended."""
        for rank in ranks:
            if rank in self.dead:
                raise self.error(rank, advice)
