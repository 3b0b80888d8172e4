"""Copies of a training's state in memory, from which it goes on when ranks died: newer, and cheaper, than checkpoints.

A copy has the form of a checkpoint and lies in files that are in memory, outside of all ranks, so it outlives any of
them. The newest is kept, and a second one while it is written.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.records import EventKind
from workbench.rundir import checkpoints
from workbench.rundir.log import RankLogWriter

if TYPE_CHECKING:
    from workbench.engine.loop.saving import Saving
    from workbench.engine.state.background_save import BackgroundSave
    from workbench.engine.state.checkpoint import Checkpoints

#: after so many copies their cost is told
_TOLD_AFTER = 2


class Snapshots:
    """Keeps the state of every ``every``-th step in ``place``, on all ranks at once; without a place, it does nothing.

    After the second one, rank 0 logs what they cost (``checkpoint`` event ``snapshot``).
    """

    def __init__(self, place: Path | None, every: int, saving: Saving, log: RankLogWriter) -> None:
        self.place = place
        self._every = every
        self._saving = saving
        self._log = log
        self._writing: BackgroundSave | None = None
        self._taken = 0
        self._least_s = math.inf

    def _checkpoints(self) -> Checkpoints:
        return self._saving.checkpoints(self.place)

    def take_if_due(self, step: int, state: Callable[[], tuple[dict[str, Any], list[str]]]) -> None:
        """Copy the state after ``step``, if it is its turn; it is written while training goes on. Collective."""
        if self.place is None or step % self._every:
            return
        began = time.perf_counter()
        self.finish()
        self._taken += 1
        tells = self._taken == _TOLD_AFTER and self._log.rank == 0
        size = _newest_bytes(self.place) if tells else 0  # before the next one replaces it
        self._writing = self._checkpoints().begin(step, state()[0], asked=False)
        self._least_s = min(self._least_s, time.perf_counter() - began)
        if tells:
            value = {"every": self._every, "bytes": size, "ms": 1e3 * self._least_s}
            self._log.event(EventKind.CHECKPOINT, "snapshot", value, step=step)

    def finish(self) -> None:
        """Wait until the newest is whole. Collective."""
        if self._writing is not None:
            self._checkpoints().finish(self._writing)
            self._writing = None  # where a rank died meanwhile, ``close`` ends it

    def forget(self) -> None:
        """Remove them, as the training has gone back to before them. Collective."""
        self.finish()
        if self._log.rank == 0 and self.place is not None:
            shutil.rmtree(self.place / checkpoints.CHECKPOINTS_DIR, ignore_errors=True)

    def close(self) -> None:
        """End what is being written, as ``Saving.close``. Not collective."""
        if self._writing is not None:
            self._writing.abandon()
            self._writing = None


def _newest_bytes(place: Path) -> int:
    """Bytes of the newest whole copy, of all ranks."""
    found = checkpoints.steps(place)
    return sum(file.stat().st_size for file in checkpoints.directory(place, found[-1]).iterdir()) if found else 0
