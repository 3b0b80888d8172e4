"""Nested containers: what is in one, and one of the same type with other contents.

Containers are mappings, lists, tuples, dataclasses, and objects with attributes that hold tensors or arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from workbench.engine.base.tensor import is_array, is_tensor

_LEAVES = (str, bytes, bytearray, int, float, complex, type(None), np.ndarray, np.generic, type)


def entries(value: Any) -> list[tuple[str, Any]] | None:
    """What a container holds, each with its place ("['x']", "[0]", ".x"), in order; None for a leaf."""
    if isinstance(value, _LEAVES) or is_tensor(value) or type(value).__name__ == "Size":
        return None
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", value[key]) for key in value]
    if isinstance(value, tuple | list):
        return [(f"[{index}]", entry) for index, entry in enumerate(value)]
    found = _attributes(value)
    if not is_dataclass(value) and not any(_holds_array(entry, {id(value)}) for entry in found.values()):
        return None
    return [(f".{name}", entry) for name, entry in found.items()]


def rebuilt(value: Any, contents: Sequence[Any]) -> Any:
    """A container of the type of ``value`` that holds ``contents``, in the order of ``entries``."""
    if type(value) is dict:
        return dict(zip(value, contents, strict=True))
    if isinstance(value, MutableMapping):
        other = copy(value)
        for key, entry in zip(list(value), contents, strict=True):
            other[key] = entry
        return other
    if isinstance(value, Mapping):
        return type(value)(dict(zip(value, contents, strict=True)))  # type: ignore[call-arg]
    if isinstance(value, tuple | list):
        return type(value)(*contents) if hasattr(value, "_fields") else type(value)(contents)
    other = copy(value)
    for name, entry in zip(_attributes(value), contents, strict=True):
        object.__setattr__(other, name, entry)  # also of a frozen dataclass
    return other


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with ``function`` applied to every leaf; containers keep their types."""
    held = entries(value)
    return function(value) if held is None else rebuilt(value, [mapped(function, entry) for _, entry in held])


def arrays_in(value: Any, place: str = "", above: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Every tensor and array of at least one dimension with its place, in order. ``above``: the ids of containers that
    hold ``value``, of which none is looked through again."""
    if is_array(value):
        yield place, value
    if id(value) not in above:
        for name, entry in entries(value) or ():
            yield from arrays_in(entry, place + name, above | {id(value)})


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    return {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})


def _slots(kind: type) -> tuple[str, ...]:
    names = kind.__dict__.get("__slots__", ())
    return tuple(name for name in ((names,) if isinstance(names, str) else names) if not name.startswith("__"))


def _holds_array(value: Any, seen: set[int]) -> bool:
    """Whether an array is in ``value`` or anything below it. ``seen``: objects that are being looked through."""
    if is_array(value):
        return True
    if isinstance(value, _LEAVES) or is_tensor(value) or id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, Mapping):
        held = list(value.values())
    elif isinstance(value, tuple | list):
        held = list(value)
    else:
        held = list(_attributes(value).values())
    return any(_holds_array(entry, seen) for entry in held)
