"""A word for who waits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

STARTING = "the ranks are starting: the framework that they train with is imported first, once per session"


@contextlib.contextmanager
def said_when_slow(text: str = STARTING, *, after_s: float = 3.0) -> Iterator[None]:
    """Print ``text`` when what is done inside takes longer than ``after_s`` seconds."""
    timer = threading.Timer(after_s, print, [text], {"flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
