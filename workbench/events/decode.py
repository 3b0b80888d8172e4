"""Decodes the JSON of events: every reader of a log asks here.

A log may be damaged, or written by another version or another program. A value of an unexpected shape is therefore no
error: each function returns what its type says, and no reader has to check again.
"""

from __future__ import annotations

import json
import math
from typing import Any

#: values that are nested deeper are kept as text, so that no reader meets Python's limit of recursion
MOST_NESTED = 50


def value_of(text: object) -> Any:
    """Decode the ``value`` or ``old_value`` of an event.

    The text itself is returned when it is no JSON, is nested deeper than ``MOST_NESTED``, or holds half of a surrogate
    pair, which no file can take.
    """
    if not isinstance(text, str):
        return None
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # UnicodeEncodeError is a ValueError
        return text
    many = text.count("[") + text.count("{") > MOST_NESTED
    return text if many and _is_deeper(value, MOST_NESTED) else value


def fields_of(text: object) -> dict[str, Any]:
    """Decode a value that is an object; empty when it is anything else."""
    value = value_of(text)
    return value if isinstance(value, dict) else {}


def number_of(text: object) -> float:
    """Decode a value that is a number; NaN when it is anything else."""
    return number(value_of(text))


def number(value: object) -> float:
    """Return a decoded value as a float; NaN when it is no number (a truth value is none) or too large for a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def is_number(value: object) -> bool:
    """Whether a decoded value is a number that a float can hold, NaN included."""
    return isinstance(value, float) or not math.isnan(number(value))


def whole(value: object, default: int = 0) -> int:
    """Return a decoded value as an integer of at most 64 bits; ``default`` when it is no such number."""
    found = number(value)
    return int(found) if abs(found) < 2**63 else default


def is_rank(value: object) -> bool:
    """Whether a decoded value is the number of a rank."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            part
            for each in level
            if isinstance(each, (dict, list))
            for part in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return any(isinstance(each, (dict, list)) for each in level)
