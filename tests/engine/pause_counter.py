"""Counts what ranks do while they are paused, in place of the time that it takes them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.observer import StepObserver
from workbench.rundir.commands import CommandReader


class PauseCounter(StepObserver):
    """Counts what the training thread does in the last pause.

    ``counts``: how long the pause was (``seconds``), the lengths asked of each ``time.sleep`` (``sleeps``), the looks
    at the size of the control file (``looks``) and how often the ranks agreed (``agreements``).
    """

    def __init__(self) -> None:
        self.counts: dict[str, Any] = {}
        self._patches: contextlib.ExitStack | None = None
        self._began = 0.0

    def phase(self, name: str) -> None:
        if self._patches is not None:
            self._patches.close()
            self._patches = None
            self.counts["seconds"] = time.monotonic() - self._began
        if name == "paused":
            self._began = time.monotonic()
            self.counts = {"sleeps": [], "looks": 0, "agreements": 0}
            self._patches = contextlib.ExitStack()
            self._replace(time, "sleep", self.counts["sleeps"].append)
            self._replace(CommandReader, "size", lambda *_: self._count("looks"))
            self._replace(AgreedControl, "take", lambda *_, **__: self._count("agreements"))

    def _count(self, name: str) -> None:
        self.counts[name] += 1

    def _replace(self, owner: Any, name: str, note: Callable[..., None]) -> None:
        """Have ``note`` called before each call that the training thread makes of ``owner.name``."""
        original, thread = getattr(owner, name), threading.get_ident()

        def noted(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() == thread:
                note(*arguments, **options)
            return original(*arguments, **options)

        assert self._patches is not None
        self._patches.callback(setattr, owner, name, original)
        setattr(owner, name, noted)
