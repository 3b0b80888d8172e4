"""A list of runs for people and scripts: choosing, sorting and writing rows. Pure but for the clock's zone."""

from __future__ import annotations

import fnmatch
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from workbench.core import numbers
from workbench.errors import ConfigError, suggest
from workbench.history.row import RunRow

#: columns in the order of a table, with their heads
COLUMNS = {
    "directory": "run",
    "when": "when",
    "recipe": "recipe",
    "plan": "plan",
    "ranks": "ranks",
    "steps": "steps",
    "best_loss": "best loss",
    "best_validation": "validation",
    "tps": "throughput/device",
    "state": "state",
    "disk_bytes": "disk",
    "tags": "tags",
    "notes": "notes",
}
NUMBERS = ("ranks", "steps", "best_loss", "best_validation", "tps", "disk_bytes")
_FIELDS = tuple(RunRow.__dataclass_fields__)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*")


def choose(
    rows: Iterable[RunRow],
    *,
    names: Sequence[str] = (),
    states: Sequence[str] = (),
    tags: Sequence[str] = (),
    where: Sequence[str] = (),
) -> list[RunRow]:
    """Rows that fit all of it.

    ``names``: shell patterns of a run's or a directory's name, one of which fits. ``states``: one of them. ``tags``:
    all of them. ``where``: conditions such as ``best_loss<2.5`` or ``recipe=stdlib-llama``, each true (a row without
    that number never fits). ``ConfigError`` for a condition that cannot be read.
    """
    tests = [_condition(text) for text in where]
    return [
        row
        for row in rows
        if (not names or any(fnmatch.fnmatchcase(text, n) for n in names for text in (row.name, row.directory)))
        and (not states or row.state in states)
        and set(tags) <= set(row.tags)
        and all(test(row) for test in tests)
    ]


def _condition(text: str) -> Callable[[RunRow], bool]:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a condition: write COLUMN<VALUE, such as best_loss<2.5", field="--where")
    column, sign, wanted = match[1], match[2].replace("==", "="), match[3]
    if column not in _FIELDS:
        raise ConfigError(f"unknown column {column!r}: {suggest(column, _FIELDS)}", field="--where")
    compare = _OPERATORS[sign]
    if column in (*NUMBERS, "when", "steps_planned"):
        try:
            value = float(wanted)
        except ValueError as error:
            raise ConfigError(
                f"{text!r}: {column} is compared with a number, not {wanted!r}", field="--where"
            ) from error
        return lambda row: getattr(row, column) is not None and compare(getattr(row, column), value)
    if column == "tags":
        return lambda row: (wanted in row.tags) == (sign != "!=")
    return lambda row: compare(str(getattr(row, column)), wanted)


def sort(rows: Iterable[RunRow], column: str = "when", *, descending: bool = False) -> list[RunRow]:
    """Rows in the order of a column; those without a value come last either way. ``ConfigError`` for no column."""
    if column not in _FIELDS:
        raise ConfigError(f"unknown column {column!r}: {suggest(column, _FIELDS)}", field="--sort")

    def missing(row: RunRow) -> bool:
        value = getattr(row, column)
        return value is None or (isinstance(value, float) and math.isnan(value))

    rows = list(rows)
    known = sorted((r for r in rows if not missing(r)), key=lambda r: getattr(r, column), reverse=descending)
    return [*known, *(row for row in rows if missing(row))]


def cells(row: RunRow) -> list[str]:
    """The row as text, one cell per entry of ``COLUMNS``; a problem stands before the notes."""
    notes = " ".join(filter(None, [f"[{row.problem}]" if row.problem else "", row.notes.replace("\n", " ")]))
    return [
        row.directory,
        moment(row.when),
        row.recipe,
        row.plan,
        str(row.ranks or ""),
        steps(row),
        number(row.best_loss),
        number(row.best_validation),
        number(row.tps),
        row.state,
        size(row.disk_bytes),
        ", ".join(row.tags),
        notes,
    ]


def steps(row: RunRow) -> str:
    """``120/360 (epoch 1 of 3)``."""
    planned = f"/{row.steps_planned}" if row.steps_planned else ""
    return f"{row.steps}{planned}{f' ({row.epoch})' if row.epoch else ''}"


def number(value: float | None) -> str:
    """Four significant digits, thousands with commas; nothing for None."""
    return "" if value is None else numbers.number(value)


def moment(when: float) -> str:
    """Local date and time to the minute."""
    return datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M") if math.isfinite(when) else ""


def size(count: float) -> str:
    """Bytes for people: ``3 kB``, ``1.2 GB`` (powers of 1,000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def text_table(rows: Sequence[RunRow]) -> str:
    """The rows as a plain text table, empty columns left out."""
    heads = list(COLUMNS.values())
    table = [cells(row) for row in rows]
    shown = [i for i in range(len(heads)) if any(line[i] for line in table)]
    widths = [max(len(heads[i]), *(len(line[i]) for line in table)) for i in shown]
    right = [list(COLUMNS)[i] in NUMBERS for i in shown]

    def put(line: list[str]) -> str:
        cut = (line[i].rjust(w) if r else line[i].ljust(w) for i, w, r in zip(shown, widths, right, strict=True))
        return "  ".join(cut).rstrip()

    return "\n".join([put(heads), *(put(line) for line in table)])


def html_table(rows: Sequence[RunRow]) -> str:
    """The rows as an HTML table, everything in it escaped."""
    return numbers.html_table([cells(row) for row in rows], list(COLUMNS.values()))
