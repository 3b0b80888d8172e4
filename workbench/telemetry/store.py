"""The store: reads the rank logs of one run directory, incrementally, into columns.

``Store.refresh`` reads what was appended since the last call (whole batches only: a truncated tail waits for its rest,
or is never read). ``Store.table(name)`` gives all rows, ``Store.since(name, cursor)`` those after a cursor, so that a
panel sends each row once. Rows keep the order of arrival; ranks interleave.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from workbench.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.errors import RunDirectoryError, SchemaError
from workbench.mesh import Mesh
from workbench.rank_log import SESSION_DIR
from workbench.records import SCHEMA_VERSION, TABLES, columns_of

Columns = dict[str, np.ndarray]


def empty(table: str) -> Columns:
    """Columns of no rows; text and list columns have dtype object."""
    return {name: np.empty(0, dtype=object if kind in "UL" else kind) for name, kind in columns_of(table).items()}


@dataclass
class _Tail:
    """One growing stream file: where the next whole message starts, and its schema once known."""

    path: Path
    offset: int = 0
    schema: pa.Schema | None = None

    def read(self) -> list[pa.RecordBatch]:
        """Whole batches appended since the last call."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = pa.BufferReader(file.read())
        start = self.offset
        batches: list[pa.RecordBatch] = []
        while True:
            try:
                message = pa.ipc.read_message(data)
            except (EOFError, OSError, pa.ArrowInvalid):
                return batches  # the end, or a tail that is still being written
            if self.schema is None:
                self.schema = pa.ipc.read_schema(message)
                self._check_version(self.schema)
            else:
                batches.append(pa.ipc.read_record_batch(message, self.schema))
            self.offset = start + data.tell()

    def _check_version(self, schema: pa.Schema) -> None:
        version = int((schema.metadata or {}).get(b"schema_version", b"0"))
        if version > SCHEMA_VERSION:
            raise SchemaError(
                f"{self.path} has schema version {version}, this version reads up to {SCHEMA_VERSION}: "
                "update dist-workbench"
            )


class Store:
    """Columns of one run directory. Not thread-safe: each reader makes its own."""

    def __init__(self, run: str | Path) -> None:
        self.run = Path(run)
        if not self.run.is_dir():
            raise RunDirectoryError(f"{self.run} is no run directory")
        self._tails: dict[tuple[Path, str], _Tail] = {}
        self._chunks: dict[str, list[pa.RecordBatch]] = {table: [] for table in TABLES}
        self._rows: dict[str, int] = dict.fromkeys(TABLES, 0)
        self._cache: dict[str, tuple[int, Columns]] = {}

    def refresh(self) -> int:
        """Read what is new; returns how many rows. ``SchemaError`` for logs of a newer version."""
        read = 0
        for directory in [*sorted(self.run.glob("rank-*")), self.run / SESSION_DIR]:
            for table in TABLES:
                key = (directory, table)
                tail = self._tails.get(key)
                if tail is None:
                    path = directory / f"{table}.arrow"
                    if not path.exists():
                        continue
                    tail = self._tails[key] = _Tail(path)
                if tail.path.stat().st_size == tail.offset:
                    continue
                for batch in tail.read():
                    self._chunks[table].append(batch)
                    self._rows[table] += batch.num_rows
                    read += batch.num_rows
        return read

    @cached_property
    def spec(self) -> TrainSpec:
        """The run's spec, from ``spec.toml``. ``ConfigError`` when it cannot be read."""
        return TrainSpec.from_options(read_spec_options(self.run / SPEC_FILE))

    @property
    def mesh(self) -> Mesh:
        """The mesh of the run's plan."""
        return self.spec.plan.mesh

    def rows(self, table: str) -> int:
        """How many rows of a table are read; also the cursor after them."""
        return self._rows[table]

    def table(self, table: str) -> Columns:
        """All rows read so far, as columns."""
        cached = self._cache.get(table)
        if cached is None or cached[0] != self._rows[table]:
            done, old = cached or (0, empty(table))
            columns = _concatenate(table, old, self._after(table, done))
            self._cache[table] = cached = (self._rows[table], columns)
        return cached[1]

    def since(self, table: str, cursor: int) -> tuple[Columns, int]:
        """Rows after ``cursor`` (0: all) and the cursor after them."""
        return _concatenate(table, empty(table), self._after(table, cursor)), self._rows[table]

    def _after(self, table: str, cursor: int) -> list[pa.RecordBatch]:
        """Batches (sliced) holding the rows after ``cursor``, walking back from the newest."""
        missing = self._rows[table] - cursor
        taken: list[pa.RecordBatch] = []
        for batch in reversed(self._chunks[table]):
            if missing <= 0:
                break
            taken.append(batch if batch.num_rows <= missing else batch.slice(batch.num_rows - missing))
            missing -= batch.num_rows
        return taken[::-1]


def _concatenate(table: str, first: Columns, batches: list[pa.RecordBatch]) -> Columns:
    if not batches:
        return first
    joined = pa.Table.from_batches(batches)  # joined in C++: hundreds of small batches come in every look
    news = {name: joined.column(name).to_numpy() for name in columns_of(table)}
    if not first["rank"].size:
        return news
    return {name: np.concatenate([first[name], news[name]]) for name in columns_of(table)}
