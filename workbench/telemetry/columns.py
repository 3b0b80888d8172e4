"""Columns that grow: what a table's rows are kept in once they are read."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.records import TABLES, columns_of
from workbench.errors import SchemaError
from workbench.telemetry.thin import groups_to_keep

#: rows of one table that a display keeps; see ``Store``
DISPLAY_ROWS = 400_000
#: fewer of tables whose rows are long
_MOST = {"layer_norms": 50_000}
#: what a display must not lose of a table when it is thinned: the extremes of these columns
_OUTLINE = {"steps": ("loss", "grad_sq", "step_time_ms"), "devices": ("cpu_percent", "rss_bytes")}
#: seconds of device samples that stay or go together
_MOMENT_S = 0.5


def empty(table: str) -> Columns:
    """Columns of no rows; text and list columns have dtype object."""
    return {name: np.empty(0, dtype=_dtype(kind)) for name, kind in columns_of(table).items()}


def _dtype(kind: str) -> str:
    return "O" if kind in "ULF" else kind


class GrowingTable:
    """The rows of one table in NumPy buffers that double when they are full.

    ``total`` counts all rows ever appended. With ``most`` rows given, older rows are thinned whenever more are held:
    whole steps go, those with the extremes of what is drawn stay, and so does the newest quarter. Events always stay.
    """

    def __init__(self, table: str, most: int | None = None) -> None:
        self.table = table
        self.total = 0
        self._most = None if most is None or table == "events" else min(most, _MOST.get(table, most))
        self._defaults = {f.name: f.default for f in fields(TABLES[table])}
        self._size = 0
        self._buffers = empty(table)
        self._numbers: np.ndarray | None = None  # of the rows held, once some were thinned out

    def append(self, rows: Columns, path: str = "a log") -> None:
        """Take rows as they were read; columns that an older version did not have get the record's default."""
        count = len(next(iter(rows.values())))
        if not count:
            return
        self._reserve(self._size + count)
        here = slice(self._size, self._size + count)
        for name in self._buffers:
            self._buffers[name][here] = rows[name] if name in rows else self._default(name, path)
        if self._numbers is not None:
            self._numbers[here] = np.arange(self.total, self.total + count)
        self._size += count
        self.total += count
        while self._most is not None and self._size > self._most and self._thin():
            pass

    def since(self, cursor: int) -> Columns:
        """Columns of the rows held after the first ``cursor`` ever appended: views that cannot be written."""
        first = cursor if self._numbers is None else int(np.searchsorted(self._numbers[: self._size], cursor))
        columns = {name: buffer[min(first, self._size) : self._size] for name, buffer in self._buffers.items()}
        for view in columns.values():
            view.flags.writeable = False
        return columns

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers (of text: of the references)."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def _reserve(self, size: int) -> None:
        capacity = len(next(iter(self._buffers.values())))
        if size <= capacity:
            return
        capacity = max(size, 2 * capacity, 256)
        for name, buffer in self._buffers.items():
            grown = np.empty(capacity, dtype=buffer.dtype)
            grown[: self._size] = buffer[: self._size]
            self._buffers[name] = grown
        if self._numbers is not None:
            self._numbers = np.concatenate([self._numbers[: self._size], np.zeros(capacity - self._size, np.int64)])

    def _default(self, name: str, path: str) -> Any:
        default = self._defaults[name]
        if default is MISSING:
            raise SchemaError(f"{path} has no column {name!r}: it is not a {self.table} log of this project")
        return default

    def _thin(self) -> bool:
        """Drop about half of the older rows; False when nothing could be dropped."""
        assert self._most is not None
        held = slice(0, self._size)
        is_sample = self.table == "devices"
        group = self._buffers["time"][held] // _MOMENT_S if is_sample else self._buffers["step"][held]
        # the newest rows by step, not by arrival: logs that are read for the first time come rank by rank
        newest = np.partition(group, -self._most // 4)[-self._most // 4]
        old = group < newest
        kept = ~old
        outline = [self._buffers[name][held][old] for name in _OUTLINE.get(self.table, ())]
        kept[old] = groups_to_keep(group[old], outline)
        if kept.all():
            return False
        self.keep(kept)
        return True

    def keep(self, kept: np.ndarray) -> None:
        """Hold only these (a mask) of the rows held; they keep their numbers."""
        held = slice(0, self._size)
        numbers = np.arange(self._size) if self._numbers is None else self._numbers[held]
        left = int(kept.sum())
        for name, buffer in self._buffers.items():
            fresh = np.empty(len(buffer), dtype=buffer.dtype)  # views that were given out keep their rows
            fresh[:left] = buffer[held][kept]
            self._buffers[name] = fresh
        self._numbers = np.zeros(len(fresh), dtype=np.int64)
        self._numbers[:left] = numbers[kept]
        self._size = left
