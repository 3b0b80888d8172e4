"""Detects whether a cell is running in the kernel, as messages of a page may then have to wait."""

from __future__ import annotations

from typing import Any


class Busy:
    """A callable that returns True while a cell runs, and always False outside a kernel.

    ``close()`` ends the detection.
    """

    def __init__(self) -> None:
        from IPython.core.getipython import get_ipython

        shell: Any = get_ipython()
        self._events = getattr(shell, "events", None) if getattr(shell, "kernel", None) is not None else None
        self._now = self._events is not None  # the object is made while a cell runs
        if self._events is not None:
            self._events.register("pre_run_cell", self._begin)
            self._events.register("post_run_cell", self._end)

    def __call__(self) -> bool:
        return self._now

    def close(self) -> None:
        """Unregister from the events of the shell."""
        events, self._events = self._events, None
        if events is not None:
            events.unregister("pre_run_cell", self._begin)
            events.unregister("post_run_cell", self._end)

    def _begin(self, *_: Any) -> None:
        self._now = True

    def _end(self, *_: Any) -> None:
        self._now = False
