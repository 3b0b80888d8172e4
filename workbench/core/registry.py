"""What other modules and other packages bring, found by entry point: frameworks, recipes.

Nothing is imported until it is asked for, and what cannot be loaded is named instead of taking the notebook with it.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from workbench.errors import ConfigError, suggest


@functools.cache
def entries(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of a group, in order of names."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}


@functools.cache
def load(group: str, name: str, *, what: str, kind: type, field: str) -> Any:
    """The object that an entry point names. ``what``: how people call such an object; ``field``: the option that asks.

    Raises ``ConfigError`` when there is none of that name (with the nearest name), or when it is installed but cannot
    be imported or is no ``kind``.
    """
    point = entries(group).get(name)
    if point is None:
        raise ConfigError(f"unknown {what} {name!r}: {suggest(name, entries(group) or ['none'])}", field=field)
    try:
        found = point.load()
    except Exception as error:  # whatever a foreign package raises
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{what} {name!r} is installed but broken: {point.value}: {reason}", field=field) from error
    if not isinstance(found, kind):
        raise ConfigError(f"{what} {name!r} is installed but broken: {point.value} is no {kind.__name__}", field=field)
    return found
