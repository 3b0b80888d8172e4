"""Waits for what a test needs: a state, a file, a process that sleeps. A busy machine takes long; no test waits for a
time to pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

#: seconds after which a wait is given up
WAIT_S = 300.0
_Found = TypeVar("_Found")


def until(found: Callable[[], _Found], what: str = "", every_s: float = 0.02) -> _Found:
    """Returns what ``found()`` returns, once that is true.

    ``what``: what is waited for, in words. Raises ``AssertionError`` after ``WAIT_S``.
    """
    deadline = time.monotonic() + WAIT_S
    while not (value := found()):
        assert time.monotonic() < deadline, f"it did not come about in {WAIT_S:.0f} s: {what or found}"
        time.sleep(every_s)
    return value


def once(found: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    """Starts a thread that calls ``act()`` when ``found()`` has become true."""

    def work() -> None:
        until(found)
        act()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def has_ended(pid: int) -> bool:
    """Whether a process has ended; the one that started it may not know yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until_asleep(pid: int, seconds: float = 0.2) -> None:
    """Returns when the main thread of a process has slept for ``seconds`` without waking up: it waits in native code.

    One that waits for the interpreter's lock wakes up more often.
    """
    status = Path(f"/proc/{pid}/status")
    since, before = time.monotonic(), ""

    def slept() -> bool:
        nonlocal since, before
        now = "".join(
            line for line in status.read_text().splitlines() if line.startswith(("State", "voluntary_ctxt_switches"))
        )
        if now != before or "sleeping" not in now:
            since, before = time.monotonic(), now
        return time.monotonic() - since >= seconds

    until(slept)
