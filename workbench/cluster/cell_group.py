"""The process group of cells: made before the first cell, and before the first one after a training or after a cell
that destroyed it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

from workbench.cluster.cells import Submission

#: what ranks run to meet in a group; they have no such group without torch
_JOIN = "from workbench.engine.notebook_group import join as _join; _join({directory!r}, {token!r})"


class CellGroup:
    """Whether the ranks of a session are in a group for cells. ``directory``: where they meet; all ranks see it.

    No two groups of this process have the same name: the file by which ranks of an earlier session met is still in the
    directory when they were killed.
    """

    _numbers = itertools.count(1)

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_ready = False
        self._number = 0

    def mark_left(self) -> None:
        """Records that some ranks leave the group, as those of a training do."""
        self._is_ready = False

    def _token(self) -> str:
        return f"cells-{self._number}"

    def _destroyed_mark(self) -> Path:
        """What a rank makes when a cell destroyed the group."""
        return self._directory / f"destroyed-{self._token()}"

    def make(self, ranks: int, run: Callable[[Submission], None]) -> None:
        """Makes the group unless it is there. ``run`` sends a submission to its ranks and waits for it."""
        if self._is_ready and not self._destroyed_mark().exists():
            return
        self._number = next(self._numbers)
        code = _JOIN.format(directory=str(self._directory), token=self._token())
        submission = Submission(code, range(ranks))
        run(submission)
        self._is_ready = True
        for text in sorted({output.stderr.strip() for output in submission.outputs.values()} - {""}):
            print(f"warning: {text}", file=sys.stderr)
