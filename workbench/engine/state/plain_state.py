"""Converts Python values to JSON types and back, without pickle.

Supported: numbers, texts, lists, tuples, sets, deques, dictionaries with keys of any supported type, NumPy arrays and
tensors. Floats are restored exactly: JSON holds the shortest text that identifies the float, and NaN and infinities are
stored by name.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from workbench.engine.base.tensor import is_tensor

_TAG = "__kind__"


class NotPlainError(TypeError):
    """The value cannot be converted, for example a function."""


def to_plain(value: Any) -> Any:
    """Convert ``value`` to JSON types. Raises ``NotPlainError`` for an unsupported type."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str | float):
        is_odd = isinstance(value, float) and not math.isfinite(value)
        return {_TAG: "float", "value": repr(value)} if is_odd else value
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, tuple | set | frozenset | collections.deque):
        kind = type(value).__name__ if type(value) in (set, frozenset, collections.deque) else "tuple"
        return {_TAG: kind, "value": [to_plain(item) for item in value]}
    if isinstance(value, dict):
        return _mapping(value)
    if isinstance(value, np.ndarray) or is_tensor(value):
        return _array(value)
    raise NotPlainError(f"a {type(value).__name__}")


def _mapping(value: dict[Any, Any]) -> dict[str, Any]:
    if type(value) is dict and all(isinstance(key, str) and key != _TAG for key in value):
        return {key: to_plain(item) for key, item in value.items()}
    kind = "counter" if isinstance(value, collections.Counter) else "dict"
    return {_TAG: kind, "value": [[to_plain(key), to_plain(item)] for key, item in value.items()]}


def _array(value: Any) -> dict[str, Any]:
    kind = "array" if isinstance(value, np.ndarray) else "tensor"
    array = value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
    if array.dtype.kind not in "biuf":
        raise NotPlainError(f"an array of {array.dtype}")
    return {_TAG: kind, "dtype": array.dtype.name, "value": to_plain(array.tolist())}


_KINDS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
    "dict": dict,
    "counter": lambda pairs: collections.Counter(dict(pairs)),
}


def from_plain(value: Any) -> Any:
    """Restore a value that ``to_plain`` converted."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_TAG)
    if kind is None:
        return {key: from_plain(item) for key, item in value.items()}
    inner = from_plain(value["value"])
    if kind in ("array", "tensor"):
        array = np.array(inner, dtype=value["dtype"])
        return array if kind == "array" else _as_tensor(array)
    return _KINDS[kind](inner)


def to_plain_where_possible(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Apply ``to_plain`` to each entry; return the converted entries and the names of those that are unsupported."""
    found, left_out = {}, []
    for name, value in values.items():
        try:
            found[name] = to_plain(value)
        except NotPlainError:
            left_out.append(name)
    return found, left_out


def _as_tensor(array: np.ndarray) -> Any:
    import torch  # a rank that saved a tensor has it

    return torch.from_numpy(array)
