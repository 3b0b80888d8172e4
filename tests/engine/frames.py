"""Records that ranks of a test gave back, as the columns that a reader of a run has."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.core.records import TABLES, columns_of


def columns(results: list[dict[str, Any]], table: str) -> Columns:
    """The rows of all ranks of one table."""
    rows = [row for result in results for row in result.get(TABLES[table].__name__, [])]
    kinds = {"U": object, "L": object}
    return {
        name: np.array([row[name] for row in rows], dtype=kinds.get(kind, kind))
        for name, kind in columns_of(table).items()
    }


def as_rows(found: list[dict[str, Any]], record: type) -> dict[str, np.ndarray]:
    """The records of a type of all ranks, as columns."""
    rows = [row for rank in found for row in rank.get(record.__name__, [])]
    names = [field.name for field in dataclasses.fields(record)]
    return {name: _column([row[name] for row in rows]) for name in names}


def _column(values: list[Any]) -> np.ndarray:
    if not values or not isinstance(values[0], list):
        return np.array(values)
    lists = np.empty(len(values), dtype=object)
    lists[:] = values
    return lists


def events_of(found: dict[str, Any], kind: str) -> list[tuple[int, str, Any]]:
    """(step, name, value) of a rank's events of a kind."""
    columns = found["events"]
    rows = zip(columns["kind"], columns["step"], columns["name"], columns["value"], strict=True)
    return [(step, name, json.loads(value)) for own, step, name, value in rows if own == kind]
