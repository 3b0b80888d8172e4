"""A copy of what a script prints. Its streams stay the objects that they are: terminals, pipes and encodings too."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import Any

from workbench.rundir.directory import OUTPUT_FILE

#: characters after which nothing more is copied
MOST = 20_000_000


class OutputCopy:
    """Copies what ``print``, ``logging`` and tracebacks write to the streams of this process into the folder of its
    rank, until ``end``. What C libraries write past Python is not seen."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = open(folder / OUTPUT_FILE, "a", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._left = MOST
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                self._copy(stream)

    def _copy(self, stream: Any) -> None:
        write = stream.write

        def copied(text: str) -> int:
            count: int = write(text)
            self._keep(text)
            return count

        with contextlib.suppress(AttributeError):  # a stream that takes no attribute is not copied
            stream.write = copied

    def _keep(self, text: str) -> None:
        if self._left <= 0 or os.getpid() != self._process or not isinstance(text, str):
            return
        with self._lock:
            self._left -= len(text)
            try:
                self._file.write(text if self._left > 0 else "\n(the copy of the output ends here)\n")
                self._file.flush()
            except (OSError, ValueError):  # a full disk, or closed: the script prints on
                self._left = 0

    def end(self) -> None:
        """Copy nothing more."""
        self._left = 0
        with contextlib.suppress(OSError):
            self._file.close()
