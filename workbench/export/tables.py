"""Writes a run as CSV or Parquet: one file per table of the logs, and ``metrics``, the metrics of the run per step."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from workbench.core.records import TABLES
from workbench.export.source import ExportSource


def write(source: ExportSource, out: Path, to: str) -> Path:
    """Write all tables into ``out`` and return it. In CSV, a list is written as JSON, and NaN as ``nan``."""
    write_table = _write_csv if to == "csv" else _write_parquet
    write_table(pa.table({name: pa.array(values) for name, values in source.metrics.items()}), out / f"metrics.{to}")
    for table in TABLES:
        write_table(source.arrow(table), out / f"{table}.{to}")
    return out


def _write_parquet(table: pa.Table, path: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(table, path, compression="zstd")


def _write_csv(table: pa.Table, path: Path) -> None:
    from pyarrow import csv

    for index, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            texts = pa.array([json.dumps(value) for value in table.column(index).to_pylist()], pa.string())
            table = table.set_column(index, field.name, texts)
    csv.write_csv(table, path)
