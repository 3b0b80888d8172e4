"""A line for a person who waits for ranks to start."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

STARTING = "the ranks are starting: torch and Colossal-AI are imported first, once per session"


@contextlib.contextmanager
def notice_when_slow(text: str = STARTING, *, after_s: float = 3.0) -> Iterator[None]:
    """Print ``text`` when the body takes longer than ``after_s`` seconds."""
    timer = threading.Timer(after_s, print, [text], {"flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
