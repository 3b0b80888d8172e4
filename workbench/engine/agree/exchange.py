"""What ranks need of their library to agree: a few bytes and numbers from one to another, rarely and unhurriedly.

The agreement itself knows no library: ranks of each library bring their ``Exchange``, and one process is ``Alone``.
"""

from __future__ import annotations

from typing import Any, Protocol


class Exchange(Protocol):
    """The ranks of a run, for small messages. Every call is made by all ranks at the same moment."""

    rank: int
    ranks: int

    def from_rank_0(self, data: bytes) -> bytes:
        """What rank 0 passes; the others pass as many bytes."""

    def gathered(self, value: Any) -> list[Any]:
        """What every rank passes, by rank; small, and can be pickled."""

    def summed(self, first: float, second: float, told: tuple[int, int]) -> tuple[float, float, int, int]:
        """The sums of what the ranks pass, in double precision, added in the order of ranks; and what rank 0 passes as
        ``told``: whole numbers below 2**53."""


class Alone:
    """An ``Exchange`` of one rank."""

    rank = 0
    ranks = 1

    def from_rank_0(self, data: bytes) -> bytes:
        """Returns ``data``: this rank is rank 0."""
        return data

    def gathered(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, which is this one."""
        return [value]

    def summed(self, first: float, second: float, told: tuple[int, int]) -> tuple[float, float, int, int]:
        """Returns its arguments, the sums over one rank."""
        return first, second, *told
