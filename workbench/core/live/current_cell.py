"""The number of the cell that this rank runs, so that what is told of one cell is not taken for another."""

from __future__ import annotations

_number: list[int] = [0]


def begin(number: int) -> None:
    """Records that a cell begins."""
    _number[0] = number


def current() -> int:
    """Returns the number of the cell that runs, or ran last; 0: none."""
    return _number[0]
