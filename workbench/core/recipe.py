"""What a recipe is. The notebook reads its facts to check a plan; ranks call ``build``.

A recipe is one module that declares ``RECIPE`` and imports torch inside functions only; an entry point names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from workbench.core import registry
from workbench.core.config import TrainSpec
from workbench.errors import ConfigError, suggest

#: entry points whose objects are ``Recipe``
GROUP = "dist_workbench.recipes"


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers of a model that a parallel plan has to divide."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    vocabulary: int
    sequence_length: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A ready model with real data.

    ``defaults``: size -> options (``steps``, ``batch_size``, ``lr`` ...) used where the user gave none. ``plugins``:
    those that can train it. ``check_data()`` raises ``ConfigError`` that names what is missing. ``build(spec)`` runs on
    a rank after the process group exists and returns an ``engine.base.workload.Workload`` with the same initial weights
    on every rank; it touches no global state. ``warm()`` does, once, what forked ranks can share; single-threaded.
    """

    name: str
    title: str
    sizes: Mapping[str, ModelShape]
    default_size: str
    defaults: Mapping[str, Mapping[str, Any]]
    plugins: tuple[str, ...]
    check_data: Callable[[], None]
    build: Callable[[TrainSpec], Any]
    warm: Callable[[], object] = lambda: None

    def shape(self, size: str) -> ModelShape:
        """Shape of a size ("" is the default one); ``ConfigError`` for an unknown one."""
        size = size or self.default_size
        if size not in self.sizes:
            raise ConfigError(f"recipe {self.name} has no size {size!r}: {suggest(size, self.sizes)}", field="--size")
        return self.sizes[size]


def recipes() -> dict[str, Recipe]:
    """All recipes that are installed and can be loaded, by name."""
    found = {}
    for name in registry.entries(GROUP):
        with suppress(ConfigError):  # ``recipe`` says what is wrong with it
            found[name] = recipe(name)
    return found


def recipe(name: str) -> Recipe:
    """The recipe of that name; ``ConfigError`` with the nearest name when there is none, or when it is broken."""
    found: Recipe = registry.load(GROUP, name, what="recipe", kind=Recipe, field="--recipe")
    return found


def check_plan(spec: TrainSpec) -> None:
    """Refuse, before a rank does anything, a plan that does not fit the recipe's model. ``ConfigError``."""
    chosen = recipe(spec.recipe)
    shape = chosen.shape(spec.size)
    plan = spec.plan
    if plan.plugin not in chosen.plugins:
        raise ConfigError(
            f"recipe {chosen.name} trains with {', '.join(chosen.plugins)}, not {plan.plugin}", field="--plugin"
        )
    for what, count, flag, parts in (
        ("attention heads", shape.heads, "tp", plan.tp),
        ("key-value heads", shape.kv_heads, "tp", plan.tp),
        ("layers", shape.layers, "pp", plan.pp),
    ):
        if count % parts:
            fits = [str(n) for n in range(1, count + 1) if count % n == 0]
            raise ConfigError(
                f"--{flag} {parts} does not divide the {count} {what} of {chosen.name} "
                f"{spec.size or chosen.default_size}: use one of {', '.join(fits)}",
                field=f"--{flag}",
            )
    chosen.check_data()
