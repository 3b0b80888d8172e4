"""The run that trains on a session's ranks, from the session's side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from workbench.core.records import END_STATES
from workbench.errors import RunDirectoryError
from workbench.events.outcome import Outcome
from workbench.run.branching import asked_branch
from workbench.run.run import Run

_Found = TypeVar("_Found")


class RunOccupant:
    """A run, for the session whose ranks it trains on. The session has to watch and to free them whatever became of
    the run's directory: where it was deleted, or cannot be read, it is as if the run had said nothing."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    def name(self) -> str:
        """Its name, for messages."""
        return self.run.name

    @property
    def is_deleted(self) -> bool:
        """Whether its directory is gone: then it is being ended."""
        return not self.run.path.is_dir()

    @property
    def is_over(self) -> bool:
        """Whether it has ended by its log, so that its ranks are free any moment; or is being ended."""
        return self._said(lambda: self.run.status in END_STATES, True)

    def step_of(self, rank: int) -> int | None:
        """The last step that a rank finished; None before its first."""
        return self._said(lambda: self.run.step_of(rank), None)

    def failed_ranks(self) -> frozenset[int]:
        """Ranks that say in their log that they failed."""
        return self._said(lambda: self.run.ranks_that_say(("failed",)), frozenset())

    def asked_branch(self) -> tuple[dict[str, Any], int] | None:
        """The branch that all its ranks agreed on: see ``branching.asked_branch``."""
        return self._said(lambda: asked_branch(self.run), None)

    def free(self, answers: dict[int, Outcome | None]) -> None:
        """When the ranks are free or gone; ``answers``: what each said about its end."""
        self.run.detach(answers, logged=self._said(lambda: self.run.ranks_that_say(END_STATES), frozenset()))

    @staticmethod
    def _said(read: Callable[[], _Found], nothing: _Found) -> _Found:
        try:
            return read()
        except RunDirectoryError:
            return nothing
