"""Which ranks of a session live, which ended, and why."""

from __future__ import annotations

from collections.abc import Iterable

from workbench.errors import RankDiedError


class Roster:
    """Fed with what the rank server says, in its reading thread; read by anybody.

    ``pids``: process id of each rank. ``dead``: ranks that ended, and why.
    """

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        self.dead: dict[int, str] = {}
        self._last_output: dict[int, str] = {}
        self._ending: dict[int, str] = {}

    def will_end(self, ranks: Iterable[int], why: str) -> None:
        """These ranks are about to be ended by us: ``why`` explains their end better than the signal does."""
        self._ending.update(dict.fromkeys(ranks, why))

    def lost(self, rank: int, reason: str, last_output: str = "") -> bool:
        """A rank ended; False when that is known already."""
        if rank in self.dead:
            return False
        self.dead[rank] = self._ending.get(rank, reason)
        self._last_output[rank] = last_output
        return True

    def alive(self, ranks: Iterable[int]) -> list[int]:
        """Those of ``ranks`` that have not ended."""
        return [rank for rank in ranks if rank not in self.dead]

    def error(self, rank: int, advice: str) -> RankDiedError:
        """What to raise about a rank that ended: why, what to do, and its last output."""
        tail = self._last_output.get(rank, "").strip()
        return RankDiedError(rank, f"{self.dead[rank]}; {advice}" + (f"\nIts last output:\n{tail}" if tail else ""))

    def check(self, ranks: Iterable[int], advice: str) -> None:
        """Raise ``error`` for the first of ``ranks`` that ended."""
        for rank in ranks:
            if rank in self.dead:
                raise self.error(rank, advice)
