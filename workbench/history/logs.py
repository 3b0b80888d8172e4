"""Reading one or two tables of a run directory at once, for lists of many runs: only what a row needs.

``Store`` follows a run; this reads it once, a few columns of a few tables, and says what is wrong with its files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from workbench.errors import RunDirectoryError
from workbench.rank_log import SESSION_DIR, schema
from workbench.records import SCHEMA_VERSION, TABLES, columns_of
from workbench.telemetry.store import Columns

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


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
    for table, columns in tables.items():
        batches: list[pa.RecordBatch] = []
        for directory in [*directories, run / SESSION_DIR]:
            batches += _batches(directory / f"{table}.arrow", list(columns), logs)
        logs.tables[table] = _columns(table, columns, batches)
    return logs


def read_table(run: Path, table: str) -> pa.Table:
    """All rows of a table, all ranks' and the session's, with the columns and kinds of today's schema.

    A column that an older log lacks has its record's default. Raises ``RunDirectoryError`` for a log that cannot be
    read; one that was cut is read up to its last whole batch.
    """
    logs = Logs(tables={}, ranks=[])
    wanted = list(columns_of(table))
    target = schema(table)
    batches: list[pa.RecordBatch] = []
    for directory in [*rank_directories(run), run / SESSION_DIR]:
        batches += _batches(directory / f"{table}.arrow", wanted, logs)
    if logs.problems:
        raise RunDirectoryError(f"{run}: {'; '.join(logs.problems)}")
    if not batches:
        return target.empty_table()
    whole = pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="default")
    arrays = []
    for name in wanted:
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


def _batches(path: Path, columns: list[str], logs: Logs) -> list[pa.RecordBatch]:
    """Whole batches of one stream, with the columns that it has."""
    where = f"{path.parent.name}/{path.name}"
    try:
        data = path.read_bytes()
        reader = pa.ipc.open_stream(data) if data else None
    except FileNotFoundError:
        return []
    except OSError as error:
        logs.problems.append(f"{where} cannot be read: {error.strerror or error}")
        return []
    except pa.ArrowInvalid:
        logs.problems.append(f"{where} is no Arrow stream")
        return []
    if reader is None:
        return []
    version = int((reader.schema.metadata or {}).get(b"schema_version", b"0"))
    if version > SCHEMA_VERSION:
        logs.problems.append(
            f"{where} has schema version {version}, this version reads up to {SCHEMA_VERSION}: update dist-workbench"
        )
        return []
    present = [name for name in columns if name in reader.schema.names]
    found: list[pa.RecordBatch] = []
    whole = data.endswith(_END_OF_STREAM)
    try:
        found.extend(batch.select(present) for batch in reader)
    except (pa.ArrowInvalid, OSError):
        whole = False  # the last batch was never finished
    if not whole:
        logs.unfinished.append(where)
    return found


def _columns(table: str, names: Sequence[str], batches: list[pa.RecordBatch]) -> Columns:
    """One array per column; a column that an older log lacks has its record's default."""
    kinds = columns_of(table)
    if not batches:
        return {name: np.empty(0, dtype=object if kinds[name] in "ULF" else kinds[name]) for name in names}
    whole = pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="default")
    out: Columns = {}
    for name in names:
        if name in whole.column_names:
            out[name] = whole.column(name).to_numpy()
        else:
            default = _default(table, name)
            out[name] = np.full(whole.num_rows, default, dtype=object if kinds[name] in "ULF" else kinds[name])
    return out


def _default(table: str, name: str) -> Any:
    """What a record has in a column that its writer did not know yet."""
    return next(field.default for field in dataclasses.fields(TABLES[table]) if field.name == name)
