"""Which plans could be: every way to spread a number of ranks that the plugins of a framework declare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.core.frameworks import Framework, Plugin

#: options that fix an axis when they are given
_AXES = ("tp", "pp")


def candidates(frameworks: list[Framework], ranks: int, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Options of each plan: framework, plugin, ranks, and tp and pp where the plugin takes them.

    ``given``: options that the user fixed. A plan that splits nothing is left to the plugins that take no such option.
    """
    for framework in frameworks:
        if given.get("framework") not in (None, framework.name):
            continue
        for plugin in framework.plugins:
            if given.get("plugin") in (None, plugin.name):
                yield from _of_plugin(framework, plugin, ranks, given)


def _of_plugin(framework: Framework, plugin: Plugin, ranks: int, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    base = {"framework": framework.name, "plugin": plugin.name, "ranks": ranks}
    takes = [axis for axis in _AXES if axis in plugin.options]
    if not takes:
        if all(given.get(axis) in (None, 1) for axis in _AXES):
            yield base
        return
    for tp in _sizes("tp", takes, ranks, given):
        for pp in _sizes("pp", takes, ranks // tp, given):
            if tp * pp == ranks > 1 and _splits_state_only(plugin) and given.get("plugin") != plugin.name:
                continue  # one data-parallel rank has nobody to split the state with
            # other plugins of the framework train it without splitting anything
            if (
                tp * pp > 1
                or given.get("plugin") == plugin.name
                or plugin is framework.plugins[0]
                or _splits_state(plugin)
            ):
                yield {**base, "tp": tp, "pp": pp}


def _splits_state(plugin: Plugin) -> bool:
    return plugin.shares is not None and plugin.shares.state


def _splits_state_only(plugin: Plugin) -> bool:
    return plugin.shares is not None and plugin.shares.state and not plugin.shares.parameters


def _sizes(axis: str, takes: list[str], ranks: int, given: Mapping[str, Any]) -> list[int]:
    if axis not in takes:
        return [1]
    wanted = given.get(axis)
    return [size for size in range(1, ranks + 1) if ranks % size == 0 and wanted in (None, size)]
