"""The ``log`` of a training script: numbers, images and texts of its own, from anywhere in its code.

``log(name, value)`` is taken by the sink of a run while it trains. What the script's top level logs before there is one
is kept for it. A repeated forward pass that is no part of the training is ``silenced``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

#: calls that are kept until there is a sink
_MOST_EARLY = 1000

#: one entry for each ``silenced`` that is entered
_silences: list[None] = []


@contextmanager
def silenced() -> Iterator[None]:
    """Whatever is logged inside counts nowhere, in this process."""
    _silences.append(None)
    try:
        yield
    finally:
        _silences.pop()


class LogSink(Protocol):
    """Where a run takes what its script logs. Nothing that it is given may raise."""

    def value(self, name: Any, value: Any, reduce: Any) -> None:
        """Take a number."""

    def image(self, name: Any, image: Any, every_rank: bool) -> None:
        """Take an image."""

    def text(self, name: Any, text: Any, every_rank: bool) -> None:
        """Take a text."""


class UserLog:
    """Logs values of the training script. Calls never end a training: a value that cannot be logged is told by an event
    of the run, once for each name.

    Copies of a model that holds it share it; in another process, such as a worker of a DataLoader, it does nothing.
    """

    def __init__(self) -> None:
        self._sink: LogSink | None = None
        self._early: list[tuple[str, tuple[Any, ...]]] = []
        self._keeps_early = True
        self._names: set[str] = set()

    def __call__(self, name: str, value: Any, reduce: str | None = "mean") -> None:
        """Log one number of this step: a curve called ``name``.

        ``value``: a number, or a tensor or array of one element. ``reduce``: how calls of one step and of all ranks are
        combined: "mean" (each call counts alike), "sum", "max" or "min"; None: the mean of the calls on each rank, one
        curve per rank.
        """
        if isinstance(name, str):
            self._names.add(name)
        self._give("value", name, value, reduce)

    def add(self, name: str, value: Any, reduce: str) -> None:
        """Log a number that the run knows of itself, unless the script logs one of this name."""
        if name not in self._names:
            self._give("value", name, value, reduce)

    def image(self, name: str, image: Any, *, every_rank: bool = False) -> None:
        """Log an image: an array or tensor (height x width, with 1, 3 or 4 channels last or first; integers from 0 to
        255, booleans, or floats from 0 to 1), a PIL image or a matplotlib figure. Taken from the first replica only,
        unless ``every_rank``."""
        self._give("image", name, image, every_rank)

    def text(self, name: str, text: str, *, every_rank: bool = False) -> None:
        """Log a text. Taken from the first replica only, unless ``every_rank``."""
        self._give("text", name, text, every_rank)

    def suspend(self) -> None:
        """Take nothing until there is a sink: the script's top level has run."""
        self._keeps_early = False

    def attach(self, sink: LogSink | None) -> None:
        """Give everything to ``sink`` from now on, what was kept first; None: take nothing any more."""
        self._sink, early, self._early = sink, self._early, []
        self._keeps_early = False
        for what, arguments in early:
            self._give(what, *arguments)

    def _give(self, what: str, *arguments: Any) -> None:
        if _silences:
            return
        if self._sink is not None:
            getattr(self._sink, what)(*arguments)
        elif self._keeps_early and len(self._early) < _MOST_EARLY:
            self._early.append((what, arguments))

    def __deepcopy__(self, memo: dict[int, Any]) -> UserLog:
        return self

    def __reduce__(self) -> tuple[type[UserLog], tuple[()]]:
        return UserLog, ()
