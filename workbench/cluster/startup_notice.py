"""A message for a user who waits for ranks to start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from workbench.core import background

STARTING_NOTICE = "starting the ranks: the training framework is imported first, which happens once per session"


@contextlib.contextmanager
def print_when_slow(text: str = STARTING_NOTICE, *, after_s: float = 3.0) -> Iterator[None]:
    """Prints ``text`` if the body of the ``with`` statement takes longer than ``after_s`` seconds."""
    failed = background.warner("the notice that ranks are starting could not be printed")
    timer = background.timer(after_s, lambda: print(text, flush=True), failed=failed)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
