"""Names of training strategies: entry points of one group, found without importing any framework."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from workbench.errors import ConfigError, nearest

STRATEGY_GROUP = "dist_workbench.strategies"


def strategy_point(name: str) -> EntryPoint:
    """The entry point of a strategy; ``ConfigError`` with the nearest name when there is none."""
    known = {point.name: point for point in entry_points(group=STRATEGY_GROUP)}
    if name not in known:
        raise ConfigError(f"unknown strategy {name!r}: {nearest(name, known)}", field="strategy")
    return known[name]
