"""Who trains on the ranks of a session, as the session sees it, and when they are free again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

#: seconds for the ranks of a run that ended to be free: peers of a failed rank are ended after 5 s
RELEASE_TIMEOUT_S = 15.0


class Occupant(Protocol):
    """What trains on the ranks of a session, as the session sees it."""

    @property
    def name(self) -> str:
        """Its name, for messages."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended, so that its ranks are free in a moment."""

    def step_of(self, rank: int) -> int | None:
        """The last step that a rank finished; None before its first."""


def await_release(current: Callable[[], Occupant | None]) -> None:
    """Wait a moment for a run that has ended by its log: its ranks answer and are free then, if they still can.

    ``current`` says who occupies the ranks now.
    """
    occupant, deadline = current(), time.monotonic() + RELEASE_TIMEOUT_S
    if occupant is not None and occupant.is_over:
        while current() is occupant and time.monotonic() < deadline:
            time.sleep(0.02)
