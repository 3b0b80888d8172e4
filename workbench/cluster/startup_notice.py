"""A line for a person who waits for ranks to start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from workbench.core import background

STARTING = "the ranks are starting: the framework that they train with is imported first, once per session"


@contextlib.contextmanager
def notice_when_slow(text: str = STARTING, *, after_s: float = 3.0) -> Iterator[None]:
    """Print ``text`` when the body takes longer than ``after_s`` seconds."""
    failed = background.warner("a notice could not be printed")
    timer = background.timer(after_s, lambda: print(text, flush=True), failed=failed)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
