"""The rank log: one append-only Arrow IPC stream per record type, written by one writer, read by anybody.

A writer never delays its caller: ``append`` puts the record into a bounded buffer (a lock and a list) and a thread
writes whole batches every ``flush_s``. What does not fit is dropped and counted, and the count is logged as an event
(kind ``log``, name ``dropped``). After SIGKILL everything up to the last whole batch can be read. A table's file
appears with its first record.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import fields
from pathlib import Path

import pyarrow as pa

from workbench.errors import RunDirectoryError
from workbench.records import SCHEMA_VERSION, TABLES, Event, Record, columns_of

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


def schema(table: str) -> pa.Schema:
    """Arrow schema of a table; its metadata carry the schema version."""
    columns = [pa.field(name, _ARROW[kind]) for name, kind in columns_of(table).items()]
    return pa.schema(columns, metadata={"schema_version": str(SCHEMA_VERSION), "table": table})


def rank_directory(run: str | Path, rank: int) -> Path:
    """Directory of a rank's log in a run directory (``rank-00003``; the session's own is ``session``)."""
    return Path(run) / (SESSION_DIR if rank < 0 else f"rank-{rank:05d}")


class RankLogWriter:
    """Appends typed records to the log of one rank. Use as a context manager, or ``close`` it.

    Raises ``RunDirectoryError`` when the directory cannot be made. Once writing fails (a full disk), logging stops:
    ``failure`` holds the reason, and later records are counted as dropped. Training goes on.
    """

    def __init__(self, run: str | Path, rank: int, *, flush_s: float = 0.25, capacity: int = 20_000) -> None:
        self.rank = rank
        self.directory = rank_directory(run, rank)
        self.dropped = 0
        self.failure: OSError | None = None
        self._flush_s = flush_s
        self._capacity = capacity
        self._buffer: list[Record] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self.closed = False
        self._reported = 0
        self._streams: dict[str, pa.RecordBatchStreamWriter] = {}
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(f"cannot make {self.directory}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._loop, name=f"rank-log-{rank}", daemon=True)
        self._thread.start()

    def append(self, record: Record) -> None:
        """Take one record; never blocks on the disk."""
        with self._lock:
            if len(self._buffer) < self._capacity and self.failure is None and not self.closed:
                self._buffer.append(record)
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

    def flush(self) -> None:
        """Write what is buffered, now, in the caller's thread."""
        with self._writing:
            with self._lock:
                taken, self._buffer = self._buffer, []
                dropped = self.dropped
            if dropped > self._reported and self.failure is None:
                self._reported = dropped
                taken.append(
                    Event(
                        time=time.time(), step=0, rank=self.rank, kind="log", name="dropped", value=json.dumps(dropped)
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
                with self._lock:
                    self.failure = error
                    self.dropped += len(taken)

    def close(self) -> None:
        """Write the rest and end the streams."""
        if self.closed:
            return
        with self._lock:
            self.closed = True  # nothing is taken from now on
        self._wake.set()
        self._thread.join()
        self.flush()
        for stream in self._streams.values():
            try:
                stream.close()
            except OSError as error:
                self.failure = self.failure or error
        self._streams.clear()

    def __enter__(self) -> RankLogWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _loop(self) -> None:
        while not self._wake.wait(self._flush_s):
            self.flush()

    def _write(self, taken: list[Record]) -> None:
        by_table: dict[str, list[Record]] = {}
        for record in taken:
            by_table.setdefault(_TABLE_OF[type(record)], []).append(record)
        for table, rows in by_table.items():
            stream = self._streams.get(table)
            if stream is None:
                descriptor = os.open(self.directory / f"{table}.arrow", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                sink = pa.PythonFile(os.fdopen(descriptor, "wb", buffering=0), mode="w")
                stream = self._streams[table] = pa.ipc.new_stream(sink, schema(table))
            names = [f.name for f in fields(TABLES[table])]
            arrays = [pa.array([getattr(row, name) for row in rows], schema(table).field(name).type) for name in names]
            stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema(table)))
