"""The progress of a long command: a bar in a terminal, some lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LINES = 10

#: ``tell(words, done, of)``: so many units of what the words name are done
Tell = Callable[[str, int, int], None]


@contextmanager
def shown_progress(first: str) -> Iterator[Tell]:
    """Shows progress while the block runs. ``first``: what happens until it is told what is done.

    A cell of a notebook (``!workbench ...``) is given a terminal that cannot move its cursor, so it has lines: at most
    ten of each kind of work.
    """
    if not sys.stdout.isatty() or "JPY_PARENT_PID" in os.environ:
        yield _Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(first, total=None)
        yield lambda words, done, of: bar.update(task, description=words, completed=done, total=of)


class _Lines:
    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def __call__(self, words: str, done: int, of: int) -> None:
        tenth = done * _LINES // max(1, of)
        if tenth > self._told.get(words, 0):
            self._told[words] = tenth
            print(f"{words}: {done} of {of}", flush=True)
