"""The exceptions of this project.

::

    WorkbenchError
    ├── ConfigError          an option has an invalid value; raised before anything starts (also a ValueError)
    ├── ClusterError         ranks could not be started, reached or stopped
    │   ├── CellTimeoutError   ranks did not finish a cell within its time
    │   ├── RankDiedError    the process of a rank ended while it was in use
    │   └── RanksBusyError   the ranks are training a run or running a cell
    ├── CellError            a cell failed on ranks; carries one traceback and the ranks that raised it
    ├── CollectiveError      a collective of a rank cannot end (also a RuntimeError)
    │   ├── CollectiveMismatchError   ranks of a group call different collectives
    │   └── CollectiveReleasedError   another rank failed, or Ctrl-C ended the wait
    ├── RunError             a run failed, or is in a state that does not allow the request
    ├── ReportError          a report cannot be written (no browser to print a PDF, no notebook to export)
    └── RunDirectoryError    a run directory cannot be created, written or read
        └── SchemaError      a file was written by a newer version of this project

``CellInterrupt``, a ``KeyboardInterrupt``, says on which ranks Ctrl-C ended a cell. Each message says what happened,
with the values, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class WorkbenchError(Exception):
    """Base class of all exceptions of this project. The message is written for the user of the notebook."""

    def _render_traceback_(self) -> list[str]:
        """Returns the lines that IPython prints in place of a traceback: only the error name and the message."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(WorkbenchError, ValueError):
    """An option has an invalid value. ``field``: the option as the user wrote it (a flag or a spec key), or None."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ClusterError(WorkbenchError):
    """Ranks could not be started, reached or stopped."""


class RankDiedError(ClusterError):
    """The process of ``rank`` ended while it was in use. ``reason``: why, as text for the user."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"rank {rank} ended: {reason}")
        self.rank = rank
        self.reason = reason


class RanksBusyError(ClusterError):
    """The ranks are training a run or running a cell, so they cannot accept the request."""


class CellError(WorkbenchError):
    """A cell failed on ranks.

    ``ranks``: the ranks that raised the same exception. ``ename``, ``evalue``: its class name and message.
    ``traceback``: the traceback of the lowest of these ranks, as text ("": no code of the user raised).
    """

    def __init__(self, ranks: Sequence[int], ename: str, evalue: str, traceback: str = "") -> None:
        super().__init__(f"{format_ranks(ranks)}: {ename}: {evalue}")
        self.ranks = tuple(ranks)
        self.ename = ename
        self.evalue = evalue
        self.traceback = traceback

    def _render_traceback_(self) -> list[str]:
        return [*filter(None, [self.traceback.rstrip()]), f"{type(self).__name__}: {self}"]


class CellInterrupt(KeyboardInterrupt):
    """Ctrl-C ended the wait for a cell on ranks.

    ``stopped``: the ranks that it ended the cell on; ``ended``: those that did not stop, so that they were killed.
    ``traceback``: where the lowest of ``stopped`` was, as text ("": not known).
    """

    def __init__(self, stopped: Iterable[int], ended: Iterable[int], traceback: str = "") -> None:
        self.stopped, self.ended, self.traceback = tuple(stopped), tuple(ended), traceback
        parts = [f"{format_ranks(self.stopped)} stopped"] if self.stopped else []
        if self.ended:
            parts.append(
                f"{format_ranks(self.ended)} did not, and lost {'its' if len(self.ended) == 1 else 'their'} variables"
            )
        super().__init__("; ".join(parts) or "the cell had ended on all ranks")

    def _render_traceback_(self) -> list[str]:
        return [*filter(None, [self.traceback.rstrip()]), f"interrupted: {self}"]


class CellTimeoutError(ClusterError):
    """Ranks did not finish a cell within its time."""


class CollectiveError(WorkbenchError, RuntimeError):
    """A collective of a rank cannot end."""


class CollectiveMismatchError(CollectiveError):
    """Ranks of a group call different collectives: other functions, sizes, dtypes, or another order."""


class CollectiveReleasedError(CollectiveError):
    """This rank was released from a collective that could not end: another rank failed, or Ctrl-C was pressed."""


class RunError(WorkbenchError):
    """A run failed, or is in a state that does not allow the request.

    ``traceback``: the traceback of the first failed rank, or "" when there is none.
    """

    def __init__(self, message: str, *, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback

    def _render_traceback_(self) -> list[str]:
        return [*filter(None, [self.traceback.rstrip()]), f"{type(self).__name__}: {self}"]


class ReportError(WorkbenchError):
    """A report cannot be written: no browser to print a PDF, or no notebook to export."""


class RunDirectoryError(WorkbenchError):
    """A run directory cannot be created, written or read."""


class SchemaError(RunDirectoryError):
    """A file was written by a newer version of this project."""


def format_ranks(ranks: Iterable[int]) -> str:
    """Formats ranks for a message: ``[0, 1, 2, 5]`` -> ``"ranks 0-2, 5"``, ``[3]`` -> ``"rank 3"``."""
    ordered = sorted(set(ranks))
    spans: list[list[int]] = []
    for rank in ordered:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"rank{'s' if len(ordered) != 1 else ''} {text}"


#: so many known names are listed beside the suggested one
_FEW_NAMES = 8


def suggest(name: str, known: Iterable[str], *, others: Iterable[str] = ()) -> str:
    """Returns a clause for an error message: the known name that resembles ``name``; and the known names, if they are
    few or none resembles it. ``others``: names that are suggested, but not listed; ``known`` is then listed in its own
    order, the first of many."""
    rest = list(others)
    names = list(known) if rest else sorted(known)
    first = names[:_FEW_NAMES] if rest else names
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    listed = f"known: {', '.join(first) or 'none'}{more}"
    close = difflib.get_close_matches(name, [*names, *rest], n=1, cutoff=0.5)
    if not close:
        return listed
    return f"did you mean {close[0]!r}?" + (f" ({listed})" if len(names) <= _FEW_NAMES else "")
