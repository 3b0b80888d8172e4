"""CSV and Parquet: one file per table of the log, and ``metrics``, the figures of the whole run per step."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from workbench.core.records import TABLES
from workbench.export.source import Source


def write(source: Source, out: Path, to: str) -> Path:
    """Write all tables into ``out``; returns it. In CSV a list is a JSON text, and a number that is none is ``nan``."""
    put = _csv if to == "csv" else _parquet
    put(pa.table({name: pa.array(values) for name, values in source.metrics.items()}), out / f"metrics.{to}")
    for table in TABLES:
        put(source.arrow(table), out / f"{table}.{to}")
    return out


def _parquet(table: pa.Table, path: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(table, path, compression="zstd")


def _csv(table: pa.Table, path: Path) -> None:
    from pyarrow import csv

    for index, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            texts = pa.array([json.dumps(value) for value in table.column(index).to_pylist()], pa.string())
            table = table.set_column(index, field.name, texts)
    csv.write_csv(table, path)
