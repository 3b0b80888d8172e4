"""The error that the last cell or training of this rank ended with, for a debugger to look at afterwards.

Its frames hold what their variables do, such as tensors, until the next cell begins.
"""

from __future__ import annotations

import sys
import traceback
from types import TracebackType

_kept: list[BaseException] = []


def keep(error: BaseException) -> None:
    """Keeps an error in place of an earlier one."""
    if error not in _kept:
        free()
        _kept.append(error)


def kept_traceback() -> TracebackType | None:
    """Returns the traceback of the error that is kept; None without one."""
    return _kept[0].__traceback__ if _kept else None


def free() -> None:
    """Frees what the frames of the kept error, and of the errors that it came of, hold."""
    errors: list[BaseException | None] = [*_kept]
    _kept.clear()
    seen: set[int] = set()
    while errors:
        error = errors.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            for frame, _line in traceback.walk_tb(error.__traceback__):
                _ = frame.f_locals  # brings the copy that was made to show the traceback up to date: empty
            error.__traceback__ = None
            errors += [error.__cause__, error.__context__]
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        vars(sys).pop(name, None)
