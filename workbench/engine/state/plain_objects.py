"""Objects as their class and what is in them, so that another process makes them again without pickle.

An object says itself how it is made again (``object.__reduce_ex__``, which ``copy`` uses too). Here only classes are
called, and they are named, not stored: those of a module are imported, those of the cell are looked up in it.
"""

from __future__ import annotations

import copyreg
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: module of the classes that a cell defines
_CELL = "__main__"


class NoPlainObjectError(TypeError):
    """The object cannot be made again in another process; the message says why."""


@dataclass(frozen=True)
class ObjectParts:
    """How an object is made: ``kind(*arguments)``, or without ``__init__`` where ``is_new``; then ``state`` is set, and
    ``items`` and ``pairs`` are added as to a list and a dictionary."""

    kind: type
    arguments: tuple[Any, ...]
    is_new: bool
    state: Any
    items: list[Any]
    pairs: list[tuple[Any, Any]]


def parts_of(value: Any) -> ObjectParts | str:
    """Take an object apart; its name as ``named`` takes it, for one that is known by a name, such as a dtype.

    Raises ``NoPlainObjectError`` for one that cannot be made again.
    """
    try:
        reduced = value.__reduce_ex__(2)
    except TypeError as error:  # a generator, a lock, an open file
        raise NoPlainObjectError(f"{_a(value)}: {error}") from error
    if isinstance(reduced, str):
        return _checked(value, getattr(value, "__module__", type(value).__module__), reduced)
    given: list[Any] = [*reduced, None, None, None]
    function, arguments, state, items, pairs = given[:5]
    is_new = function is copyreg.__newobj__  # type: ignore[attr-defined]
    kind, arguments = (arguments[0], arguments[1:]) if is_new else (function, arguments)
    if not isinstance(kind, type):
        raise NoPlainObjectError(f"{_a(value)}, which is made by a function")
    return ObjectParts(kind, tuple(arguments), is_new, state, list(items or ()), list(pairs or ()))


def made_of(parts: ObjectParts) -> Any:
    """Undo ``parts_of``."""
    kind: Any = parts.kind
    value = kind.__new__(kind, *parts.arguments) if parts.is_new else kind(*parts.arguments)
    if parts.state is not None:
        _set_state(value, parts.state)
    for item in parts.items:
        value.append(item)
    for key, entry in parts.pairs:
        value[key] = entry
    return value


def _set_state(value: Any, state: Any) -> None:
    if hasattr(value, "__setstate__"):
        value.__setstate__(state)
        return
    both = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    for attributes in both:  # those of ``__dict__``, and those of slots
        for name, entry in (attributes or {}).items():
            object.__setattr__(value, name, entry)  # also of a frozen dataclass


def name_of(value: Any) -> str:
    """The name by which another process finds a class or a function: "module:qualified.name".

    Raises ``NoPlainObjectError`` where it would not.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "<nameless>")
    if module is None or "<" in name:
        raise NoPlainObjectError(f"{name}, which is made inside a function: define it at the top level of the cell")
    return _checked(value, module, name)


def _checked(value: Any, module: str, name: str) -> str:
    try:
        is_there = module == _CELL or _attribute(sys.modules[module], name) is value
    except (KeyError, AttributeError):
        is_there = False
    if not is_there:
        raise NoPlainObjectError(f"{name}, which cannot be found in {module}")
    return f"{module}:{name}"


def named(name: str, cell: Mapping[str, Any]) -> Any:
    """What has this name; ``cell``: what the cell defines, and what it took from elsewhere.

    Raises ``LookupError`` when it is not there any more.
    """
    module, _, path = name.partition(":")
    try:
        if module != _CELL:
            return pkgutil.resolve_name(name)
        first, *rest = path.split(".")
        return _attribute(cell[first], ".".join(rest)) if rest else cell[first]
    except (ImportError, AttributeError, KeyError) as error:
        raise LookupError(f"{path} of {'the cell' if module == _CELL else module}") from error


def _attribute(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _a(value: Any) -> str:
    return f"a {type(value).__name__}"
