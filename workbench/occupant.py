"""The run that trains on a session's ranks, from the session's side."""

from __future__ import annotations

import time
from typing import Protocol

from workbench.errors import RunDirectoryError
from workbench.records import END_STATES

#: seconds for the ranks of a run that ended to be free: peers of a failed rank are ended after 5 s
RELEASE_TIMEOUT_S = 15.0


class Occupant(Protocol):
    """What a session has to know of the run (``workbench.run.Run`` is one)."""

    @property
    def name(self) -> str:
        """Its name, for messages."""

    @property
    def status(self) -> str:
        """As ``Run.status``."""

    def step_of(self, rank: int) -> int | None:
        """The last step that a rank finished; None before its first."""


class Occupied(Protocol):
    """What has an occupant, or None; ``workbench.Session`` is one."""

    occupant: Occupant | None


def await_release(session: Occupied) -> None:
    """Wait a moment for a run that has ended by its log: its ranks answer and are free then, if they still can."""
    occupant, deadline = session.occupant, time.monotonic() + RELEASE_TIMEOUT_S
    if occupant is not None and _is_over(occupant):
        while session.occupant is occupant and time.monotonic() < deadline:
            time.sleep(0.02)


def _is_over(occupant: Occupant) -> bool:
    try:
        return occupant.status in END_STATES
    except RunDirectoryError:  # deleted, so it is being ended
        return True
