"""Logged images and texts in the tab Samples: the list of them, and the one that is looked at.

Only while the tab is visible is anything read or sent: the list when it changed, and the content of one image or text,
the newest of a name unless the page chose another. New ones follow at a rate that bounds the bytes.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from workbench.telemetry.logged.gallery import Gallery, Item, Name
from workbench.telemetry.store import Store

#: seconds between two contents that nobody asked for, and bytes per second of them
EVERY_S = 1.0
BYTES_PER_S = 2**17


@dataclass(frozen=True, slots=True)
class _Choice:
    """What the page wants to see; ``step`` None: the newest. ``turn``: the page's number of this choice."""

    kind: str = ""
    name: str = ""
    rank: int = -1
    step: int | None = None
    turn: int = 0


class LoggedMedia:
    """What one run's cell logged with ``log.image`` and ``log.text``, for its page."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._gallery = Gallery(store.run)
        self._cursor = 0
        self._rollbacks = 0
        self._choice = _Choice()
        self._has_news = True
        self._is_asked = False
        self._sent: tuple[str, str, int, int] | None = None
        self._due = 0.0

    def choose(self, value: Any) -> None:
        """Show another: ``kind``, ``name``, ``rank``, ``step`` (None: the newest) and ``turn``, as the page sent it."""
        if isinstance(value, dict):
            numbers = {n: value[n] for n in ("rank", "step", "turn") if isinstance(value.get(n), int)}
            self._choice = _Choice(kind=str(value.get("kind")), name=str(value.get("name")), **numbers)
            self._is_asked = True

    def forget(self) -> None:
        """Send everything again: the page has nothing."""
        self._has_news, self._sent, self._due = True, None, 0.0

    def news(self, clock: float | None) -> dict[str, Any]:
        """Return ``logged`` (the list) and ``logged_item`` (the content of one) where they changed, else nothing.

        ``clock``: monotonic time in seconds; None: at once.
        """
        self._read()
        if not self._is_asked and clock is not None and clock < self._due:
            return {}
        out: dict[str, Any] = {}
        names = self._gallery.names() if self._has_news or self._is_asked else []
        if self._has_news and names:
            left_out = len(self._gallery.left_out)
            out["logged"] = {"names": [_listed(name) for name in names], "left_out": left_out}
        if names:
            self._due = (clock or 0.0) + EVERY_S
            place, is_newest = self._chosen(names)
            if self._is_asked or place != self._sent or place[0] == "text":
                self._sent = place
                item = self._gallery.item(*place)
                self._due += len(item.png) / BYTES_PER_S
                out["logged_item"] = {**_as_json(item), "newest": is_newest, "turn": self._choice.turn}
        self._has_news = self._is_asked = False
        return out

    def _read(self) -> None:
        """Take new rows; all of them again after a rollback, which took some back."""
        rollbacks = len(self._store.rollbacks.known)
        if rollbacks != self._rollbacks:
            self._rollbacks, self._cursor = rollbacks, 0
            self._gallery, self._sent = Gallery(self._store.run, has_rollbacks=True), None
        if self._store.rows("media") != self._cursor:
            rows, self._cursor = self._store.since("media", self._cursor)
            self._gallery.take(rows)
            self._has_news = True

    def _chosen(self, names: list[Name]) -> tuple[tuple[str, str, int, int], bool]:
        """Kind, name, rank and step of what the page chose, and whether it is the newest of its name. In place of what
        is not there (any more) stand the first name, its first rank, the newest step."""
        wanted = self._choice
        name = next((n for n in names if (n.kind, n.name) == (wanted.kind, wanted.name)), names[0])
        rank = wanted.rank if wanted.rank in name.steps else min(name.steps)
        steps = name.steps[rank]
        step = wanted.step if wanted.step in steps else steps[-1]
        return (name.kind, name.name, rank, step), step == steps[-1]


def _listed(name: Name) -> dict[str, Any]:
    """A name with its steps; ranks with the same steps are listed together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank, steps in name.steps.items():
        groups.setdefault(tuple(steps), []).append(rank)
    return {
        "kind": name.kind,
        "name": name.name,
        "groups": [{"ranks": ranks, "steps": list(steps)} for steps, ranks in groups.items()],
    }


def _as_json(item: Item) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "name": item.name,
        "rank": item.rank,
        "step": item.step,
        "text": item.text,
        "png": base64.b64encode(item.png).decode(),
        "width": item.width,
        "height": item.height,
        "problem": item.problem,
    }
