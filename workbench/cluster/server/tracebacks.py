"""Tracebacks of cells on ranks end in the user's code, not in the signal handler that raised an interrupt."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Any

_HERE = str(Path(__file__).parent)


def hide_signal_handlers(shell: Any) -> None:
    """Let the tracebacks that ``shell`` shows end before frames of this package that stand at their end."""
    show = shell.showtraceback

    def shown(exc_tuple: Any = None, *args: Any, **options: Any) -> None:
        cut_own_end((exc_tuple or sys.exc_info())[2])
        show(exc_tuple, *args, **options)

    shell.showtraceback = shown


def cut_own_end(trace: TracebackType | None) -> None:
    """Cut off the frames of this package at the end of ``trace``, which keeps its first frame."""
    last = trace
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(_HERE):
            last = trace
        trace = trace.tb_next
    if last is not None:
        last.tb_next = None
