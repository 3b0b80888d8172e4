"""Records that ranks of a test gave back, as the columns that a reader of a run has."""

from __future__ import annotations

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
