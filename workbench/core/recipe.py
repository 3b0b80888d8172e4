"""What a recipe is. The kernel reads the facts (to check a plan before a rank does anything); ranks call ``build``.

A recipe is one file in this package: it declares ``RECIPE`` and imports torch only inside functions.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.core.config import TrainSpec
from workbench.errors import ConfigError, nearest

if TYPE_CHECKING:
    from workbench.engine.base.workload import Workload


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
    those that can train it. ``check_data()`` raises ``ConfigError`` naming what is missing. ``build(spec)`` runs on a
    rank after the process group exists, returns the same initial weights on every rank, and touches no global state.
    ``warm()`` does, once, what forked ranks can share; single-threaded.
    """

    name: str
    title: str
    sizes: Mapping[str, ModelShape]
    default_size: str
    defaults: Mapping[str, Mapping[str, Any]]
    plugins: tuple[str, ...]
    check_data: Callable[[], None]
    build: Callable[[TrainSpec], Workload]
    warm: Callable[[], object] = lambda: None

    def shape(self, size: str) -> ModelShape:
        """Shape of a size ("" is the default one); ``ConfigError`` for an unknown one."""
        size = size or self.default_size
        if size not in self.sizes:
            raise ConfigError(f"recipe {self.name} has no size {size!r}: {nearest(size, self.sizes)}", field="--size")
        return self.sizes[size]


def recipes() -> dict[str, Recipe]:
    """All recipes of this package by name."""
    import workbench.recipes as package

    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        recipe = getattr(module, "RECIPE", None)
        if recipe is not None:
            found[recipe.name] = recipe
    return found


def recipe(name: str) -> Recipe:
    """The recipe of that name; ``ConfigError`` with the nearest name when there is none."""
    known = recipes()
    if name not in known:
        raise ConfigError(f"unknown recipe {name!r}: {nearest(name, known)}", field="--recipe")
    return known[name]


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
