"""Frameworks for tests of the seam: one that can only train, one whose package is broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint

from workbench.core import registry
from workbench.core.frameworks import GROUP, Capability, Framework, Plugin

NO_HOOKS = "its library shows no gradients"

BARE = Framework(
    name="bare",
    title="Bare",
    plugins=(
        Plugin(
            name="solo",
            summary="trains and nothing else",
            strategy="tests.unit.fake_frameworks:BARE",
            capabilities=frozenset(),
            lacks=dict.fromkeys(Capability, "it only trains") | {Capability.WATCHABLE: NO_HOOKS},
        ),
    ),
    preload="",
    joined="",
    packages=("no-such-distribution",),
)


@contextmanager
def installed(**values: str) -> Iterator[None]:
    """While entered, exactly these frameworks are installed: name -> ``module:attribute`` of the entry point."""
    before = registry.entries
    points = {name: EntryPoint(name=name, value=value, group=GROUP) for name, value in values.items()}
    registry.entries = lambda group: points if group == GROUP else before(group)
    registry.load.cache_clear()
    try:
        yield
    finally:
        registry.entries = before
        registry.load.cache_clear()
