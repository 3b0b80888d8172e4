"""With what a script ends: Python tells nobody of a ``SystemExit`` that no one catches."""

from __future__ import annotations

import builtins
import sys
import threading
from typing import Any

#: the class that Python has
_SYSTEM_EXIT = builtins.SystemExit


class ExitCode:
    """``found``: the ``SystemExit`` that is about to end this process; None while there is none. ``begin`` puts a
    subclass in the place of Python's, under its name."""

    def __init__(self) -> None:
        self.found: SystemExit | None = None

    def begin(self) -> None:
        """Notice such exceptions from now on."""
        ended = self

        class SystemExit(_SYSTEM_EXIT):
            """As Python's own: it notes when it ends the process, which is when it dies below the script's code."""

            def __del__(self) -> None:
                if sys._getframe().f_back is None and threading.current_thread() is threading.main_thread():
                    ended.found = _SYSTEM_EXIT(self.code)

        SystemExit.__module__, SystemExit.__qualname__ = "builtins", "SystemExit"

        def leave(status: Any = None, /) -> Any:
            raise SystemExit(status)

        told = threading.excepthook

        def thread_ended(args: threading.ExceptHookArgs, /) -> None:
            if not issubclass(args.exc_type, _SYSTEM_EXIT):  # Python's hook knows its own class only
                told(args)

        builtins.SystemExit = SystemExit  # type: ignore[misc]
        sys.exit = leave
        threading.excepthook = thread_ended

    @property
    def failure(self) -> SystemExit | None:
        """What was found, where it is no success: a code that is neither None nor 0."""
        return None if self.found is None or self.found.code in (None, 0) else self.found
