"""Which plans could be: every way to spread a number of ranks that the plugins of a framework declare."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from workbench.core.frameworks import SPLIT, Framework, Plugin


def candidates(frameworks: list[Framework], ranks: int, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Options of each plan: framework, plugin, ranks, and tp, pp and cp where the plugin takes them.

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
    takes = [axis for axis in SPLIT if axis in plugin.options]
    if any(given.get(axis) not in (None, 1) for axis in SPLIT if axis not in takes):
        return
    if not takes:
        yield base
        return
    for sizes in _sizes(takes, ranks, given):
        block = math.prod(sizes.values())
        if block == ranks > 1 and _splits_state_only(plugin) and given.get("plugin") != plugin.name:
            continue  # one data-parallel rank has nobody to split the state with
        # other plugins of the framework train it without splitting anything
        if block > 1 or given.get("plugin") == plugin.name or plugin is framework.plugins[0] or _splits_state(plugin):
            yield {**base, **sizes}


def _splits_state(plugin: Plugin) -> bool:
    return plugin.shares is not None and plugin.shares.state


def _splits_state_only(plugin: Plugin) -> bool:
    return plugin.shares is not None and plugin.shares.state and not plugin.shares.parameters


def _sizes(takes: list[str], ranks: int, given: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    """The sizes of the axes, of those that the plugin takes all that divide the ranks."""
    possible = {
        axis: [size for size in range(1, ranks + 1) if ranks % size == 0 and given.get(axis) in (None, size)]
        if axis in takes
        else [1]
        for axis in SPLIT
    }
    for sizes in itertools.product(*possible.values()):
        if ranks % math.prod(sizes) == 0:
            yield dict(zip(possible, sizes, strict=True))
