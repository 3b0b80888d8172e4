"""Reading one or two tables of a run directory at once, for lists of many runs: only what a row needs.

``Store`` follows a run; this reads it once, a few columns of a few tables, and says what is wrong with its files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from workbench.core.columns import Columns
from workbench.core.records import TABLES
from workbench.errors import RunDirectoryError, SchemaError
from workbench.rundir.log import SESSION_DIR, schema
from workbench.telemetry.columns import GrowingTable
from workbench.telemetry.reading.batches import Batches
from workbench.telemetry.reading.stream import END, check_version, message_end, parse, whole_messages


@dataclass(kw_only=True)
class Logs:
    """Columns of the tables that were asked for, the ranks that have a log, and what is wrong (sentences)."""

    tables: dict[str, Columns]
    ranks: list[int]
    problems: list[str] = field(default_factory=list)
    #: files that were not closed: their writer was killed, or lives still
    unfinished: list[str] = field(default_factory=list)


def read(run: Path, tables: dict[str, Sequence[str]]) -> Logs:
    """Read ``tables`` (table -> columns) of every rank and of the session. Never raises for a broken file."""
    directories = rank_directories(run)
    logs = Logs(tables={}, ranks=[int(directory.name[5:]) for directory in directories])
    texts: dict[str, str] = {}
    for table, columns in tables.items():
        rows = GrowingTable(table)
        for directory in [*directories, run / SESSION_DIR]:
            path = directory / f"{table}.arrow"
            try:
                if stream := _stream(path, logs):
                    rows.append(parse(stream.head, [stream.batches], texts), _where(path))
            except (pa.ArrowInvalid, SchemaError, UnicodeDecodeError) as error:
                logs.problems.append(f"{_where(path)} is damaged: {error}")
        found = rows.since(0)
        logs.tables[table] = {name: found[name] for name in columns}
    return logs


def read_table(run: Path, table: str) -> pa.Table:
    """All rows of a table, all ranks' and the session's, with the columns and kinds of today's schema.

    A column that an older log lacks has its record's default. Raises ``RunDirectoryError`` for a log that cannot be
    read; one that was cut is read up to its last whole batch.
    """
    logs = Logs(tables={}, ranks=[])
    target = schema(table)
    files = [directory / f"{table}.arrow" for directory in [*rank_directories(run), run / SESSION_DIR]]
    streams = [stream for file in files if (stream := _stream(file, logs))]
    if logs.problems:
        raise RunDirectoryError(f"{run}: {'; '.join(logs.problems)}")
    if not streams:
        return target.empty_table()
    tables = [pa.ipc.open_stream(stream.head + stream.batches.data).read_all() for stream in streams]
    whole = pa.concat_tables(tables, promote_options="default")
    arrays = []
    for name in target.names:
        kind = target.field(name).type
        if name in whole.column_names:
            arrays.append(whole.column(name).cast(kind))
        else:
            arrays.append(pa.array([_default(table, name)] * whole.num_rows, kind))
    return pa.Table.from_arrays(arrays, schema=target)


def rank_directories(run: Path) -> list[Path]:
    """The ranks' directories of a run, in order of rank."""
    found = [path for path in run.glob("rank-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


class _Stream(NamedTuple):
    """A log: the message with its schema, and the whole batches."""

    head: bytes
    batches: Batches


def _stream(path: Path, logs: Logs) -> _Stream | None:
    """One log, or None where there is nothing in it; ``logs`` is told what is wrong with it."""
    where = _where(path)
    try:
        data = path.read_bytes()
        head = data[: max(0, message_end(data, 0))]
        if data:
            check_version(where, head)
    except FileNotFoundError:
        return None
    except OSError as error:
        logs.problems.append(f"{where} cannot be read: {error.strerror or error}")
        return None
    except pa.ArrowInvalid:
        logs.problems.append(f"{where} is not an Arrow stream")
        return None
    except SchemaError as error:
        logs.problems.append(str(error))
        return None
    if not data:
        return None
    batches = whole_messages(data, len(head))
    if len(head) + len(batches.data) < len(data) or not data.endswith(END):
        logs.unfinished.append(where)  # the last batch was never finished, or another may come
    return _Stream(head, batches)


def _where(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _default(table: str, name: str) -> Any:
    """What a record has in a column that its writer did not know yet."""
    return next(field.default for field in dataclasses.fields(TABLES[table]) if field.name == name)
