"""The rank log: one append-only Arrow IPC stream per record type, written by one writer, read by anybody.

A writer never delays its caller: ``append`` puts the record into a bounded buffer (a lock and a list) and a thread
writes whole batches every ``flush_s``. What does not fit is dropped and counted, and the count is logged as an event
(kind ``log``, name ``dropped``). After SIGKILL everything up to the last whole batch can be read. A table's file
appears with its first record.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence, Sized
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from workbench.core import background
from workbench.core.records import SCHEMA_VERSION, STEP_TABLES, TABLES, Event, EventKind, Record, columns_of
from workbench.errors import RunDirectoryError

_ARROW = {
    "f8": pa.float64(),
    "i8": pa.int64(),
    "U": pa.string(),
    "?": pa.bool_(),
    "L": pa.list_(pa.int64()),
    "F": pa.list_(pa.float32()),
}
_TABLE_OF = {kind: table for table, kind in TABLES.items()}
SESSION_DIR = "session"
#: touched by every writer of a run's logs, so that readers on other hosts see that it is alive
HEARTBEAT_FILE = "heartbeat"
HEARTBEAT_S = 10.0
#: longest time between two writes, whatever they cost
MOST_FLUSH_S = 2.0
#: a batch takes at most so many rows, so that a writer that fell behind still writes in bounded memory
_BATCH_ROWS = 65_536
#: how a stream ends (https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format)
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def schema(table: str) -> pa.Schema:
    """Arrow schema of a table; its metadata carry the schema version."""
    columns = [pa.field(name, _ARROW[kind]) for name, kind in columns_of(table).items()]
    return pa.schema(columns, metadata={"schema_version": str(SCHEMA_VERSION), "table": table})


def rank_directory(run: str | Path, rank: int) -> Path:
    """Directory of a rank's log in a run directory (``rank-00003``; the session's own is ``session``)."""
    return Path(run) / (SESSION_DIR if rank < 0 else f"rank-{rank:05d}")


def _array(values: tuple[Any, ...], kind: str) -> pa.Array:
    """One column, from the records' values. ``pa.array`` would import pandas first: a second on a busy machine, in
    which a rank that is killed leaves nothing."""
    count = len(values)
    match kind:
        case "U":
            texts = [text.encode("utf-8", "replace") for text in values]
            return pa.Array.from_buffers(pa.string(), count, [None, _offsets(texts), pa.py_buffer(b"".join(texts))])
        case "L" | "F":
            flat = tuple(number for numbers in values for number in numbers)
            inner = _array(flat, "i8" if kind == "L" else "f4")
            return pa.Array.from_buffers(_ARROW[kind], count, [None, _offsets(values)], children=[inner])
        case "?":
            bits = np.packbits(np.array(values, dtype=bool), bitorder="little")
            return pa.Array.from_buffers(pa.bool_(), count, [None, pa.py_buffer(bits)])
        case _:
            flat_type = pa.float32() if kind == "f4" else _ARROW[kind]
            numbers = np.array(values, dtype=kind)
            if numbers.ndim != 1:
                raise TypeError(f"a number is expected, not {values[0]!r}")
            return pa.Array.from_buffers(flat_type, count, [None, pa.py_buffer(numbers)])


def _written(path: Path, expected: pa.Schema) -> tuple[int, int]:
    """How many bytes of a stream without an end are whole, and how many rows they hold; (0, 0) where there is none."""
    whole = rows = 0
    with contextlib.suppress(FileNotFoundError, EOFError, pa.ArrowInvalid), pa.OSFile(str(path)) as file:
        if not pa.ipc.read_schema(pa.ipc.read_message(file)).equals(expected):
            raise RunDirectoryError(f"{path} was written by another version of dist-workbench: nothing can be added")
        whole = file.tell()
        while True:
            message = pa.ipc.read_message(file)  # raises at a part of a message
            rows += pa.ipc.read_record_batch(message, expected).num_rows
            whole = file.tell()
    return whole, rows


def _offsets(parts: Sequence[Sized]) -> pa.Buffer:
    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return pa.py_buffer(offsets)


class _TableFile:
    """One table's stream. A batch reaches the file in one piece, or is taken back: what is there is always whole."""

    def __init__(self, path: Path, table: str, *, append: bool = False) -> None:
        self._schema = schema(table)
        self._kinds = list(columns_of(table).values())
        self._row = attrgetter(*self._schema.names)
        self._whole, self.rows = _written(path, self._schema) if append else (0, 0)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (0 if append else os.O_TRUNC), 0o600)
        if append:
            self._cut()

    def append(self, rows: list[Record]) -> list[str]:
        """Write ``rows`` as batches; returns, for each row that was left out, what its columns do not take of it.
        ``OSError`` when the disk takes no more; the file then ends where it ended."""
        refused: list[str] = []
        for first in range(0, len(rows), _BATCH_ROWS):
            chunk = rows[first : first + _BATCH_ROWS]
            try:
                batch = self._batch(chunk)
            except Exception:  # of anybody's record: the others are written
                found = [(row, self._fault_of(row)) for row in chunk]
                refused += [why for _, why in found if why]
                chunk = [row for row, why in found if not why]
                batch = self._batch(chunk) if chunk else None
            if batch is not None:
                message = batch.serialize().to_pybytes()
                self._write(message if self._whole else self._schema.serialize().to_pybytes() + message)
        return refused

    def _batch(self, rows: Sequence[Record]) -> pa.RecordBatch:
        columns = zip(*map(self._row, rows), strict=True)
        arrays = [_array(values, kind) for values, kind in zip(columns, self._kinds, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _fault_of(self, row: Record) -> str:
        try:
            self._batch([row])
        except Exception as error:  # told in the log
            return background.described(error)
        return ""

    def close(self, *, ends: bool = True) -> None:
        """End the stream with Arrow's mark, if it ``ends``. ``OSError`` when it does not fit; readers do not need it. A
        stream of which nothing was written gets none: without a schema before it, it would be no stream."""
        try:
            if self._whole and ends:
                self._write(_END_OF_STREAM)
        finally:
            os.close(self._descriptor)

    def _write(self, message: bytes) -> None:
        data = memoryview(message)
        try:
            while data:  # a disk that fills up takes a part first, and says so at the next write only
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            with contextlib.suppress(OSError):  # not a file that can be cut
                self._cut()
            raise
        self._whole = os.lseek(self._descriptor, 0, os.SEEK_CUR)

    def _cut(self) -> None:
        """Take back what is no whole batch."""
        os.ftruncate(self._descriptor, self._whole)
        os.lseek(self._descriptor, self._whole, os.SEEK_SET)


class RankLogWriter:
    """Appends typed records to the log of one rank. Use as a context manager, or ``close`` it.

    Raises ``RunDirectoryError`` when the directory cannot be made. Once writing fails (a full disk), logging stops:
    ``failure`` holds the reason, later records are counted as dropped, and ``on_failure(error)`` is called once, in the
    thread that wrote. It is the surviving channel, so it must not write where the log does. Training goes on.
    ``append``: the rank goes on in the log that it has. ``goes_on``, set before it is closed: its streams get no end,
    as another writer will go on.
    ``cost_s`` is the processor time that the writing thread has used; with ``share`` it writes more rarely, every
    ``MOST_FLUSH_S`` at the least, where it would otherwise use more than this share of a processor. Events are not
    kept waiting for that: whoever paused a run, or saved a checkpoint, looks for them.
    """

    def __init__(
        self,
        run: str | Path,
        rank: int,
        *,
        flush_s: float = 0.4,
        capacity: int = 20_000,
        on_failure: Callable[[OSError], None] | None = None,
        share: float = 1.0,
        append: bool = False,
    ) -> None:
        self.rank = rank
        self.goes_on = False
        self._on_failure = on_failure
        self.directory = rank_directory(run, rank)
        self.dropped = 0
        self.cost_s = 0.0
        self.failure: OSError | None = None
        self._flush_s = flush_s
        self._share = share
        self._capacity = capacity
        self._buffer: list[Record] = []
        self._has_event = False
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self.closed = False
        self._reported = 0
        self._files: dict[str, _TableFile] = {}
        self._taken = dict.fromkeys(STEP_TABLES, 0)
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(f"cannot make {self.directory}: {error.strerror}") from error
        for table in TABLES if append else ():
            path = self._path(table)
            if path.exists():
                self._files[table] = file = _TableFile(path, table, append=True)
                if table in self._taken:
                    self._taken[table] = file.rows
        self._refusing: set[str] = set()  # tables of which the log says that records were left out
        self._thread = background.thread(self._loop, name=f"rank-log-{rank}", failed=self._end_by)
        self._thread.start()

    def append(self, record: Record) -> None:
        """Take one record; never blocks on the disk."""
        with self._lock:
            if len(self._buffer) < self._capacity and self.failure is None and not self.closed:
                self._buffer.append(record)
                self._has_event |= isinstance(record, Event)
                table = _TABLE_OF[type(record)]
                if table in self._taken:
                    self._taken[table] += 1
            else:
                self.dropped += 1

    def event(self, kind: str, name: str, value: object = None, *, step: int = 0, old_value: object = None) -> None:
        """Append an ``Event`` of now; ``value`` is encoded as JSON."""
        self.append(
            Event(
                time=time.time(),
                step=step,
                rank=self.rank,
                kind=kind,
                name=name,
                value=json.dumps(value),
                old_value=json.dumps(old_value),
            )
        )

    def taken(self) -> dict[str, int]:
        """Rows taken so far of each table of steps that has any."""
        with self._lock:
            return {table: count for table, count in self._taken.items() if count}

    def flush(self) -> None:
        """Write what is buffered, now, in the caller's thread."""
        with self._writing:
            with self._lock:
                taken, self._buffer, self._has_event = self._buffer, [], False
                dropped = self.dropped
            if dropped > self._reported and self.failure is None:
                self._reported = dropped
                taken.append(
                    Event(
                        time=time.time(),
                        step=0,
                        rank=self.rank,
                        kind=EventKind.LOG,
                        name="dropped",
                        value=json.dumps(dropped),
                    )
                )
            if not taken:
                return
            if self.failure is not None:
                with self._lock:
                    self.dropped += len(taken)
                return
            try:
                self._write(taken)
            except OSError as error:
                self._stop(error, taken)

    def _stop(self, error: OSError, lost: list[Record]) -> None:
        """Log nothing from now on, and say so where it can still be heard."""
        with self._lock:
            self.failure = error
            self.dropped += len(lost)
        with contextlib.suppress(OSError):  # the events may still fit, or be on a file that is not at its limit
            why = json.dumps(str(error))
            self._write([Event(time=time.time(), step=0, rank=self.rank, kind=EventKind.LOG, name="failed", value=why)])
        if self._on_failure is not None:
            self._on_failure(error)

    def _end_by(self, error: BaseException) -> None:
        """The writing thread cannot go on."""
        self._stop(OSError(background.described(error)), [])

    def close(self) -> None:
        """Write the rest and end the streams."""
        if self.closed:
            return
        with self._lock:
            self.closed = True  # nothing is taken from now on
        self._wake.set()
        self._thread.join()
        self.flush()
        for file in self._files.values():
            try:
                file.close(ends=not self.goes_on)
            except OSError as error:
                self.failure = self.failure or error
        self._files.clear()

    def __enter__(self) -> RankLogWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _loop(self) -> None:
        next_beat = due = 0.0
        while not self._wake.wait(self._flush_s):
            now = time.monotonic()
            if now >= due or self._has_event:
                self.flush()
                before, self.cost_s = self.cost_s, time.thread_time()
                due = now + min((self.cost_s - before) / self._share, MOST_FLUSH_S)
            if now >= next_beat:
                next_beat = now + HEARTBEAT_S
                self._beat()

    def _beat(self) -> None:
        """Touch the run's heartbeat. Where that fails, the files of the log show the same, if later."""
        with contextlib.suppress(OSError):
            (self.directory.parent / HEARTBEAT_FILE).touch(mode=0o600)

    def _write(self, taken: list[Record]) -> None:
        by_table: dict[str, list[Record]] = {}
        for record in taken:
            by_table.setdefault(_TABLE_OF[type(record)], []).append(record)
        for table in sorted(by_table, key=lambda table: table == "events"):  # who sees an event sees what came before
            rows = by_table[table]
            file = self._files.get(table)
            if file is None:
                file = self._files[table] = _TableFile(self._path(table), table)
            refused = file.append(rows)
            if refused:
                self._tell_refused(table, refused)

    def _path(self, table: str) -> Path:
        return self.directory / f"{table}.arrow"

    def _tell_refused(self, table: str, refused: list[str]) -> None:
        with self._lock:
            self.dropped += len(refused)
            self._reported = self.dropped
        if table not in self._refusing:
            self._refusing.add(table)
            text = f"records of the table {table!r} could not be written and are missing: {refused[0]}"
            self._write(
                [Event(time=time.time(), step=0, rank=self.rank, kind=EventKind.WARNING, name="record_refused",
                       value=json.dumps(text))]
            )  # fmt: skip
