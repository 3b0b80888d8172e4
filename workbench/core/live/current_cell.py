"""The number of the cell that this rank runs, so that what is told of one cell is not taken for another."""

from __future__ import annotations

_number: list[int] = [0]
_broken: list[str] = [""]


def begin(number: int) -> None:
    """Records that a cell begins."""
    _number[0], _broken[0] = number, ""


def note_broken(why: str) -> None:
    """Records that a collective of the cell was broken. From any thread."""
    _broken[0] = why


def why_broken() -> str:
    """Returns why a collective of the cell was broken; "": none was."""
    return _broken[0]


def current() -> int:
    """Returns the number of the cell that runs, or ran last; 0: none."""
    return _number[0]
