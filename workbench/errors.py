"""Every exception that this project raises on purpose.

::

    WorkbenchError
    ├── ConfigError          a value that cannot work, found before anything started (also a ValueError)
    ├── ClusterError         ranks could not be brought up, reached or ended
    │   ├── RankDiedError    a rank ended while it was needed
    │   └── RanksBusyError   the ranks train a run, so they cannot take this now
    ├── CellError            a cell failed on ranks: one traceback and the ranks that had it
    ├── RunError             a training run failed, or can no longer take what was asked
    ├── ReportError          a report that cannot be made here (no browser to print it, no notebook to report)
    └── RunDirectoryError    a run directory that cannot be made, written or read
        └── SchemaError      written by a newer version of this project

Each message says what happened, with the values, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class WorkbenchError(Exception):
    """Base of every error of this project; its message is meant for the person at the notebook."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback of our own frames: the message is what helps."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(WorkbenchError, ValueError):
    """A value that cannot work. ``field`` is the name as the user typed it (a flag, a spec key)."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ClusterError(WorkbenchError):
    """Ranks could not be brought up, reached or ended."""


class RankDiedError(ClusterError):
    """A rank ended while it was needed; ``rank`` and a readable ``reason``."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"rank {rank} ended: {reason}")
        self.rank = rank
        self.reason = reason


class RanksBusyError(ClusterError):
    """The ranks train a run, so they cannot take this now."""


class CellError(WorkbenchError):
    """A cell failed on ranks.

    ``ranks`` had the same error ``ename: evalue``; ``traceback`` (text) is the first of them.
    """

    def __init__(self, ranks: Sequence[int], ename: str, evalue: str, traceback: str) -> None:
        super().__init__(f"{format_ranks(ranks)}: {ename}: {evalue}")
        self.ranks = tuple(ranks)
        self.ename = ename
        self.evalue = evalue
        self.traceback = traceback

    def _render_traceback_(self) -> list[str]:
        return [self.traceback.rstrip(), f"{type(self).__name__}: {self}"]


class RunError(WorkbenchError):
    """A training run failed, or can no longer take what was asked; ``traceback`` is that of the first failed rank."""

    def __init__(self, message: str, *, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback

    def _render_traceback_(self) -> list[str]:
        return [*filter(None, [self.traceback.rstrip()]), f"{type(self).__name__}: {self}"]


class ReportError(WorkbenchError):
    """A report that cannot be made here: there is no browser to print it, or no notebook to report."""


class RunDirectoryError(WorkbenchError):
    """A run directory that cannot be made, written or read."""


class SchemaError(RunDirectoryError):
    """A file written by a newer version of this project."""


def format_ranks(ranks: Iterable[int]) -> str:
    """``[0, 1, 2, 5]`` -> ``"ranks 0-2, 5"``; a single one -> ``"rank 3"``."""
    ordered = sorted(set(ranks))
    spans: list[list[int]] = []
    for rank in ordered:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"rank{'s' if len(ordered) != 1 else ''} {text}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause for an error message: the nearest known name, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
