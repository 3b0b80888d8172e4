"""Threads that never end unheard: what goes wrong in one is told where the user looks, and what waits for it fails.

Every thread of the workbench is made here (``tests/unit/test_background.py`` holds that).
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable


def described(error: BaseException) -> str:
    """An exception in a line: its class and its message."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def traceback_of(error: BaseException) -> str:
    """The traceback of an exception as text, for whoever looks for its cause."""
    return "".join(traceback.format_exception(error))


def warner(what: str) -> Callable[[BaseException], None]:
    """For ``failed``: prints, where the notebook or the terminal shows it, that ``what`` came of the exception."""

    def warn(error: BaseException) -> None:
        print(f"warning: {what} ({described(error)})", file=sys.stderr, flush=True)

    return warn


def thread(work: Callable[[], object], *, name: str, failed: Callable[[BaseException], object]) -> threading.Thread:
    """A daemon thread, not started yet, that does ``work``. An exception that leaves ``work`` is given to ``failed`` in
    that thread, which tells the user and ends what waits for the thread."""

    def run() -> None:
        try:
            work()
        except BaseException as error:  # answered by ``failed``
            failed(error)

    return threading.Thread(target=run, name=name, daemon=True)


def timer(after_s: float, work: Callable[[], object], *, failed: Callable[[BaseException], object]) -> threading.Timer:
    """A daemon timer, not started yet, that does ``work`` after so many seconds; ``failed`` as of ``thread``."""

    def run() -> None:
        try:
            work()
        except BaseException as error:  # answered by ``failed``
            failed(error)

    made = threading.Timer(after_s, run)
    made.daemon = True
    return made


class Rounds:
    """The rounds of a loop that goes on whatever goes wrong in one of them.

    ``with rounds:`` around each. An ``Exception`` ends the round and is told (``tell(error)``), once for as long as the
    rounds after it fail alike. ``failing``: whether the last round did.
    """

    def __init__(self, tell: Callable[[Exception], object]) -> None:
        self._tell = tell
        self._told = ""

    @property
    def failing(self) -> bool:
        """Whether the last round failed."""
        return bool(self._told)

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            self._told = self._told if error is not None else ""
            return False
        before, self._told = self._told, described(error)
        if self._told != before:
            self._tell(error)
        return True
