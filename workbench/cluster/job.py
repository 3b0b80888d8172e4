"""The training run that uses the ranks of a session, as the session sees it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Job(Protocol):
    """A training run on the ranks of a session.

    The code that starts it assigns it to ``Session.job``, and resets that to None when the run has ended. All methods
    may be called at any time and from any thread.
    """

    @property
    def name(self) -> str:
        """The name of the run, for messages."""

    @property
    def is_over(self) -> bool:
        """Whether the training has ended; the ranks are released shortly after."""

    @property
    def release_timeout_s(self) -> float:
        """How long the ranks take at most to be released when the training has ended, also where they are killed."""

    def step_of(self, rank: int) -> int | None:
        """Returns the last step that a rank finished, or None before its first."""

    def give_up(self) -> None:
        """Records that a person interrupts it: it is not to be started again, however its ranks end."""


def wait_for_release(current: Callable[[], Job | None]) -> None:
    """Waits until a job that is over has released the ranks, for its ``release_timeout_s`` at most.

    ``current()`` returns the job that uses the ranks, or None. Returns immediately when there is no job, or when it is
    still training.
    """
    job = current()
    if job is not None and job.is_over:
        deadline = time.monotonic() + job.release_timeout_s
        while current() is job and time.monotonic() < deadline:
            time.sleep(0.02)
