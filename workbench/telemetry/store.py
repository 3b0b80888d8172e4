"""The store: reads the rank logs of one run directory, incrementally, into columns.

``Store.refresh`` reads what was appended since the last call (whole batches only: a truncated tail waits for its rest,
or is never read). ``Store.table(name)`` gives all rows, ``Store.since(name, cursor)`` those after a cursor, so that a
panel sends each row once. Rows keep the order of arrival; ranks interleave. Those that a rollback took back are left
out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from workbench.core.columns import Columns
from workbench.core.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.core.mesh import Mesh
from workbench.core.records import STEP_TABLES, TABLES
from workbench.errors import RunDirectoryError, SchemaError, WorkbenchError
from workbench.rundir.log import SESSION_DIR
from workbench.telemetry.columns import DISPLAY_ROWS, GrowingTable, empty
from workbench.telemetry.reading.batches import Batches
from workbench.telemetry.reading.stream import CHUNK_BYTES, Tail, message_end, parse, whole_messages
from workbench.telemetry.rollbacks import Rollbacks

__all__ = ["DISPLAY_ROWS", "Columns", "Store", "empty"]

#: a directory that changed so recently may change again without a newer time stamp
_CLOCK_STEP_NS = 2 * 10**9
#: events first: what was taken back is known before it is read
_IN_ORDER = ("events", *(table for table in TABLES if table != "events"))
#: what reading bytes that are no log of ours raises (UnicodeDecodeError and ArrowInvalid are ValueErrors)
_DAMAGE = (SchemaError, pa.ArrowException, OSError, ValueError, IndexError)


class _Directory:
    """A directory whose entries are listed again only when it changed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen_ns = -1

    def changed(self) -> bool:
        """Whether entries may have come since the last call. ``OSError`` when it is gone."""
        changed_ns = os.stat(self.path).st_mtime_ns
        same = changed_ns == self._seen_ns and time.time_ns() - changed_ns > _CLOCK_STEP_NS
        self._seen_ns = changed_ns
        return not same


class Store:
    """Columns of one run directory. Not thread-safe: each reader makes its own.

    ``most`` bounds the rows that are held of each table (``DISPLAY_ROWS`` for a panel): of a longer run whole steps are
    left out, oldest first, those with the extremes of what is drawn last. None: everything is held. The files keep all.

    ``spare``: a file that cannot be read does not end the reading of the others; ``problems`` says what is wrong with
    it. ``absent``: ranks whose steps will never come, set by who knows; without them a step is whole.
    ``assumed``: the spec to go by where the run's own cannot be read, set by who knows; one that can be read wins.

    ``rollbacks``: returns of ranks to a checkpoint. After one, what was made of rows read before may be of steps that
    count no more.
    """

    def __init__(self, run: str | Path, *, most: int | None = None, spare: bool = False) -> None:
        self.run = Path(run)
        self.problems: dict[str, str] = {}
        self.absent: frozenset[int] = frozenset()
        self.assumed: TrainSpec | None = None
        self._spare = spare
        if not self.run.is_dir():
            raise RunDirectoryError(f"{self.run} is not a run directory")
        self._run = _Directory(str(self.run))
        self._logs: list[_Directory] = []
        self._tails: dict[str, dict[str, Tail]] = {}
        self._tables = {table: GrowingTable(table, most) for table in TABLES}
        self._texts: dict[str, str] = {}
        self.rollbacks = Rollbacks()

    def refresh(self) -> int:
        """Read what is new; returns how many rows.

        ``RunDirectoryError`` when the directory is gone, ``SchemaError`` for logs of a newer version.
        """
        try:
            self._look()
            read, more = self._read()
            while more:
                new, more = self._read()
                read += new
            return read
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise RunDirectoryError(f"a log of {self.run} is damaged: {error}") from error
        except OSError as error:
            if error.strerror is None:  # Arrow's own, about the bytes
                raise RunDirectoryError(f"a log of {self.run} is damaged: {error}") from error
            raise RunDirectoryError(
                f"{self.run} can no longer be read: {error.strerror} ({error.filename}). Was it moved or deleted?"
            ) from error

    def _look(self) -> None:
        """Find the logs of ranks, and the tables in them, that were not there before."""
        if self._run.changed():
            known = {log.path for log in self._logs}
            for entry in sorted(os.scandir(self.run), key=lambda entry: entry.name):
                is_log = entry.name.startswith("rank-") or entry.name == SESSION_DIR
                if is_log and entry.path not in known and entry.is_dir():
                    self._logs.append(_Directory(entry.path))
            self._logs.sort(key=lambda log: log.path)
        for log in self._logs:
            if log.changed():
                tails = self._tails.setdefault(log.path, {})
                present = set(os.listdir(log.path))
                for table in _IN_ORDER:
                    if table not in tails and f"{table}.arrow" in present:
                        tails[table] = Tail(os.path.join(log.path, f"{table}.arrow"), table)

    def _read(self) -> tuple[int, bool]:
        """Some of what is new: how many rows, and whether there is more. Files of one schema are decoded together."""
        found: dict[tuple[str, bytes], list[tuple[Tail, Batches]]] = {}
        size, more = 0, False
        for tail in self._unspared():
            if size > CHUNK_BYTES:
                more = True
                break
            try:
                news = tail.news()
            except _DAMAGE as error:
                self._set_aside(tail, error)
                continue
            more |= tail.has_more
            if news is not None:
                size += len(news.data)
                found.setdefault((tail.table, tail.head), []).append((tail, news))
        before = sum(table.total for table in self._tables.values())
        for (table, head), pieces in found.items():
            self._take(table, head, pieces)
        return sum(table.total for table in self._tables.values()) - before, more

    def _take(self, table: str, head: bytes, news: list[tuple[Tail, Batches]]) -> None:
        """Keep what files of one schema brought; a damaged one up to its damage, where it may be spared."""
        try:
            self._append(table, head, [piece for _, piece in news])
        except _DAMAGE as error:
            if not self._spare:
                raise
            for tail, piece in news:
                if len(news) > 1:
                    self._take(table, head, [(tail, piece)])
                else:
                    self._set_aside(tail, error)
                    self._salvage(table, head, piece.data)

    def _salvage(self, table: str, head: bytes, data: bytes) -> None:
        """Keep the batches before the first that cannot be read."""
        at = 0
        with suppress(*_DAMAGE):
            while (end := message_end(data, at)) > at:
                self._append(table, head, [whole_messages(data[at:end])])
                at = end

    def _append(self, table: str, head: bytes, pieces: list[Batches]) -> None:
        rows = parse(head, pieces, self._texts)
        if table in STEP_TABLES and {"rank", "step"} <= rows.keys():
            rows = self.rollbacks.standing(table, rows)
        self._tables[table].append(rows, str(self.run))
        if table == "events":
            for back in self.rollbacks.take(rows):
                for each in STEP_TABLES:
                    self.rollbacks.apply(back, each, self._tables[each])

    def _unspared(self) -> Iterator[Tail]:
        return (t for log in self._logs for t in self._tails[log.path].values() if t.path not in self.problems)

    def _set_aside(self, tail: Tail, error: Exception) -> None:
        if not self._spare or (isinstance(error, OSError) and error.strerror is not None):
            raise error
        self.problems[tail.path] = str(error)

    def cut(self) -> list[Path]:
        """Logs of which no more was read than up to some place within them, and that have no other problem."""
        return [Path(tail.path) for tail in self._unspared() if tail.offset < os.stat(tail.path).st_size]

    @property
    def spec(self) -> TrainSpec:
        """The run's spec, from ``spec.toml``. Where that cannot be read: ``assumed``, else ``ConfigError``."""
        try:
            return self._read_spec
        except (WorkbenchError, TypeError):
            if self.assumed is None:
                raise
            return self.assumed

    @cached_property
    def _read_spec(self) -> TrainSpec:
        return TrainSpec.from_options(read_spec_options(self.run / SPEC_FILE))

    @property
    def mesh(self) -> Mesh:
        """The mesh of the run's plan."""
        return self.spec.plan.mesh

    def rows(self, table: str) -> int:
        """How many rows of a table are read; also the cursor after them."""
        return self._tables[table].total

    def table(self, table: str) -> Columns:
        """All rows held, as columns (views: copy before changing them)."""
        return self._tables[table].since(0)

    def since(self, table: str, cursor: int) -> tuple[Columns, int]:
        """Rows after ``cursor`` (0: all) and the cursor after them."""
        rows = self._tables[table]
        return rows.since(cursor), rows.total
