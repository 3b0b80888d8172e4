"""What a session knows of the training that holds its ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

#: seconds for the ranks of a job that is over to be free; ranks that wait for a failed one are ended before that
RELEASE_TIMEOUT_S = 15.0


class Job(Protocol):
    """A training on the ranks of a session. Whoever starts it sets it as ``Session.job`` and takes it away at the end.

    Its methods may be called at any time and by any thread.
    """

    @property
    def name(self) -> str:
        """Its name, for messages."""

    @property
    def is_over(self) -> bool:
        """Whether training has ended, so that the ranks will be free in a moment."""

    def step_of(self, rank: int) -> int | None:
        """The last step that a rank finished; None before its first."""


def wait_for_release(current: Callable[[], Job | None]) -> None:
    """If the ``current`` job is over, wait until it no longer holds the ranks, for ``RELEASE_TIMEOUT_S`` at most."""
    job, deadline = current(), time.monotonic() + RELEASE_TIMEOUT_S
    if job is not None and job.is_over:
        while current() is job and time.monotonic() < deadline:
            time.sleep(0.02)
