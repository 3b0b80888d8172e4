"""Folds identical items of several ranks, such as console lines, into one entry that lists the ranks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


def ranges(ranks: set[int]) -> str:
    """Format ranks as ranges: ``{0, 1, 2, 5}`` -> "0-2,5"."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and parts[-1][1] == rank - 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


class Folded:
    """The newest ``most`` entries: dicts with ``id``, ``ranks``, ``count`` and the fields given to ``add``.

    An item joins the newest entry of the same key when its rank is not in that entry yet, or when that entry is also
    the last one of the rank; then the entry's ``count`` rises. ``window``: the number of recent keys that are kept for
    this; an item with an older key makes a new entry.
    """

    def __init__(self, most: int, window: int = 200) -> None:
        self._most, self._window = most, window
        self._entries: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._ranks: dict[int, set[int]] = {}
        self._recent: OrderedDict[Hashable, int] = OrderedDict()
        self._last_of: dict[int, int] = {}
        self._changed: dict[int, None] = {}
        self._next = 0

    def add(self, key: Hashable, rank: int, **shown: Any) -> None:
        """Add an item of ``rank``. Items with equal ``key`` are identical; ``shown``: the fields of their entry."""
        place = self._recent.get(key)
        if place is not None and place in self._entries:
            entry, ranks = self._entries[place], self._ranks[place]
            if rank not in ranks or self._last_of.get(rank) == place:
                if rank in ranks and rank == min(ranks):
                    entry["count"] += 1
                ranks.add(rank)
                entry["ranks"] = ranges(ranks)
                self._last_of[rank] = place
                self._changed[place] = None
                return
        place = self._next
        self._next += 1
        self._entries[place] = {"id": place, "ranks": ranges({rank}), "count": 1, **shown}
        self._ranks[place] = {rank}
        self._recent[key] = self._last_of[rank] = place
        self._recent.move_to_end(key)
        self._changed[place] = None
        if len(self._recent) > self._window:
            self._recent.popitem(last=False)
        if len(self._entries) > self._most:
            old, _ = self._entries.popitem(last=False)
            self._ranks.pop(old)
            self._changed.pop(old, None)

    def renew(self, key: Hashable, rank: int, *, again: int = 1, **shown: Any) -> None:
        """Let an item take the place of the newest entry with the same ``key``, whose ``count`` then rises by
        ``again``."""
        place = self._recent.get(key)
        if place is None or place not in self._entries:
            self.add(key, rank, **shown)
            return
        self._ranks[place].add(rank)
        entry = self._entries[place]
        entry |= {**shown, "count": entry["count"] + again, "ranks": ranges(self._ranks[place])}
        self._recent.move_to_end(key)
        self._changed[place] = None

    def news(self) -> list[dict[str, Any]]:
        """Return the entries that are new or changed since the last call."""
        changed, self._changed = self._changed, {}
        return [dict(self._entries[place]) for place in changed if place in self._entries]

    def all(self) -> list[dict[str, Any]]:
        """Return all entries that are kept."""
        self._changed = {}
        return [dict(entry) for entry in self._entries.values()]
