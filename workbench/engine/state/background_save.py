"""A checkpoint that is written while training goes on: a thread of each rank writes the shards that were copied, and
that of rank 0 makes it the checkpoint once all shards are there.

No collective is called from these threads: ranks meet in ``Checkpoints.finish``, and rank 0 sees that the others have
written by their files, which appear whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.core import background
from workbench.engine.state.checkpoint_files import ShardWriter, rank_file

#: niceness of the thread that writes
_NICENESS = 10
#: seconds between looks for the other ranks' files
_LOOK_S = 0.01
#: seconds that a training which ends early waits for the other ranks' files
TIMEOUT_S = 5.0


class BackgroundSave:
    """One rank's part of a checkpoint that is written into ``directory``.

    ``shards`` and ``state``: what the rank writes. ``publish``: on rank 0, what makes a checkpoint of the shards of all
    ``ranks``; None on the others. ``failed``: told the reason, in the thread, when this rank's part could not be
    written.
    """

    def __init__(
        self,
        directory: Path,
        shards: ShardWriter,
        state: dict[str, Any],
        *,
        ranks: int,
        publish: Callable[[], None] | None,
        failed: Callable[[str], object],
    ) -> None:
        self._directory = directory
        self._shards = shards
        self._state = state
        self._ranks = ranks
        self._publish = publish
        self._failed = failed
        self._reason = ""
        self._written = threading.Event()
        self._abandoned = threading.Event()
        self._thread = background.thread(self._work, name=f"checkpoint-{directory.stem}", failed=self._end_by)
        self._thread.start()

    def wait_written(self) -> str:
        """Wait until this rank's shards are on the disk; "" or why they are not."""
        self._written.wait()
        return self._reason

    def wait_published(self) -> str:
        """On rank 0, wait until the checkpoint is there; "" or why it is not."""
        self._thread.join()
        return self._reason

    def abandon(self, timeout_s: float = TIMEOUT_S) -> None:
        """End it: a checkpoint where all ranks have written within ``timeout_s`` seconds, and otherwise nothing."""
        self._written.wait()
        self._thread.join(timeout_s)
        self._abandoned.set()
        self._thread.join()
        if self._publish is not None:
            shutil.rmtree(self._directory, ignore_errors=True)  # where it was published, it has another name

    def _work(self) -> None:
        with contextlib.suppress(OSError):  # training goes first; where that is not allowed, it shares the cores
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            self._shards.write(self._state)
        finally:
            del self._shards, self._state  # the copy of the weights is not needed any more
        self._written.set()
        if self._publish is None:
            return
        files = [self._directory / rank_file(rank, "json") for rank in range(self._ranks)]
        while not all(file.exists() for file in files):
            if self._abandoned.wait(_LOOK_S):
                return
        self._publish()

    def _end_by(self, error: BaseException) -> None:
        self._reason = background.described(error)
        self._failed(self._reason)
        self._written.set()
