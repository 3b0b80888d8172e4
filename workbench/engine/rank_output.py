"""What a rank prints: kept in its output file and sent to the notebook, of which either may end before the training."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO


def telling(stream: TextIO, rank: int) -> Callable[[OSError], None]:
    """Make the function that says on ``stream``, which reaches the notebook and no disk, that a log has ended."""

    def tell(error: OSError) -> None:
        with contextlib.suppress(OSError, ValueError):  # the notebook is gone too: nobody is left to tell
            stream.write(f"rank {rank} can no longer write its log: {error.strerror or error}. Training continues.\n")
            stream.flush()

    return tell


class Tee(io.TextIOBase):
    """Writes to ``before``, the engine's stream to the notebook, and to ``kept``, the rank's output file.

    When the disk of ``kept`` is full, only the first goes on: a ``print`` of the user's must not end the training.
    """

    def __init__(self, kept: TextIO, before: TextIO) -> None:
        self._kept: TextIO | None = kept
        self._before = before

    def write(self, text: str) -> int:
        """Write to both streams; returns how many characters the notebook's has taken."""
        if self._kept is not None:
            try:
                self._kept.write(text)
            except OSError:
                self._kept = None
        return self._before.write(text)

    def flush(self) -> None:
        if self._kept is not None:
            with contextlib.suppress(OSError):
                self._kept.flush()
        self._before.flush()


@contextlib.contextmanager
def output_kept(file: Path) -> Iterator[None]:
    """Append to ``file`` what is printed inside, beside where it went before."""
    kept = file.open("a", encoding="utf-8", buffering=1)
    try:
        with (
            contextlib.redirect_stdout(Tee(kept, sys.stdout)),
            contextlib.redirect_stderr(Tee(kept, sys.stderr)),
        ):
            yield
    finally:
        with contextlib.suppress(OSError):  # what did not fit is lost, as ``Tee`` says
            kept.close()
