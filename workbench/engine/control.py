"""Agreed control: every rank applies a command at the same step boundary.

Rank 0 looks at the size of ``control.jsonl`` (a ``stat``), and an asynchronous broadcast on a side group tells all
ranks up to which byte to read: posted when a step begins, awaited when it ends, so its latency hides behind the step.
Every rank then reads the same bytes, hence the same commands, before the same step. A number of rank 0's rides along:
what the next step's watching is, so that all ranks watch the same steps.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from workbench.records import Command
from workbench.run_directory import CONTROL_FILE


class ControlReader:
    """Reads whole lines of a growing ``control.jsonl`` up to a given byte."""

    def __init__(self, run: str | Path) -> None:
        self.path = Path(run) / CONTROL_FILE
        self.offset = 0

    def size(self) -> int:
        """Bytes there are now; a line is written by one ``write``, so they end with a whole line."""
        return self.path.stat().st_size

    def read(self, end: int) -> list[Command]:
        """Commands between the last call and byte ``end``."""
        if end <= self.offset:
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            text = file.read(end - self.offset).decode()
        self.offset = end
        return [Command.from_line(line) for line in text.splitlines()]


class AgreedControl:
    """The collective half. ``post`` at the start of a step and ``take`` at its end, on every rank of the run."""

    def __init__(self, run: str | Path, rank: int, world_size: int) -> None:
        self._reader = ControlReader(run)
        self._rank = rank
        self._posted = torch.zeros(2, dtype=torch.int64)
        self._group = dist.new_group(backend="gloo") if world_size > 1 else None
        self._work: dist.Work | None = None

    def post(self, rider: int = 0) -> None:
        """Rank 0 says how far the control file reaches, and its ``rider``; what other ranks pass is not looked at."""
        if self._rank == 0:
            self._posted[0] = self._reader.size()
            self._posted[1] = rider
        if self._group is not None:
            self._work = dist.broadcast(self._posted, src=0, group=self._group, async_op=True)

    def take(self) -> list[Command]:
        """Commands to apply before the next step: the same list on every rank. Afterwards ``rider`` is rank 0's."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._reader.read(int(self._posted[0]))

    @property
    def rider(self) -> int:
        """The number that rank 0 gave to the last ``post``."""
        return int(self._posted[1])
