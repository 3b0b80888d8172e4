"""Reads events: the one place where their JSON texts become values.

A log may be another version's, or written by anybody, so nothing here raises: a text that is no JSON stands for itself,
and a value of another shape than expected reads as nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

from workbench.core.columns import Columns

#: columns that a list of runs does not read
_SOMETIMES = ("old_value", "who", "command")
#: values that are nested deeper stay text, so that no reader meets Python's limit of recursion
MOST_NESTED = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedEvent:
    """One row of the table ``events`` with its values decoded; ``row`` is its place in the table."""

    row: int
    time: float
    step: int
    rank: int
    kind: str
    name: str
    value: Any
    old_value: Any
    who: str
    command: int

    @property
    def fields(self) -> dict[str, Any]:
        """The value where it is an object; else empty."""
        return as_mapping(self.value)


def of_kind(events: Columns, kind: str, name: str | None = None, *, rank: int | None = None) -> Iterator[DecodedEvent]:
    """Rows of one kind (of one name, of one rank) in the order of the table, decoded."""
    chosen = events["kind"] == kind
    if name is not None:
        chosen &= events["name"] == name
    if rank is not None:
        chosen &= events["rank"] == rank
    return (decoded_row(events, int(row)) for row in chosen.nonzero()[0])


def of_rank(events: Columns, rank: int) -> Iterator[DecodedEvent]:
    """Rows of one rank in the order of the table, decoded."""
    return (decoded_row(events, int(row)) for row in (events["rank"] == rank).nonzero()[0])


def decoded_row(events: Columns, row: int) -> DecodedEvent:
    """One row, decoded. A list of runs reads only some columns: what it did not read is empty."""
    old_value, who, command = (events[name][row] if name in events else None for name in _SOMETIMES)
    return DecodedEvent(
        row=row,
        time=float(events["time"][row]),
        step=int(events["step"][row]),
        rank=int(events["rank"][row]),
        kind=str(events["kind"][row]),
        name=str(events["name"][row]),
        value=decode(events["value"][row]),
        old_value=decode(old_value),
        who=str(who or ""),
        command=int(command or 0),
    )


def decode(text: Any) -> Any:
    """The value of a JSON text.

    The text itself where it is no JSON, is nested deeper than ``MOST_NESTED``, or holds half of a surrogate pair, which
    no file can take.
    """
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):  # UnicodeEncodeError is a ValueError
        return text
    many = text.count("[") + text.count("{") > MOST_NESTED
    return text if many and _is_nested_deeper(value, MOST_NESTED) else value


def _is_nested_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        groups = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))]
        level = [part for group in groups for part in group]
    return any(isinstance(part, (dict, list)) for part in level)


def as_mapping(value: Any) -> dict[str, Any]:
    """``value`` where it is an object; else an empty one."""
    return value if isinstance(value, dict) else {}


def as_number(value: Any) -> float:
    """``value`` as a number; NaN where it is none (JSON's true and false are none)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # an integer of hundreds of digits
            return math.inf if value > 0 else -math.inf
    return math.nan


def is_rank(value: Any) -> TypeGuard[int]:
    """Whether ``value`` is the number of a rank."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
