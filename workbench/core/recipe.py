"""What a recipe is. The notebook reads its facts to check a plan; ranks call ``build``.

A recipe is one module that declares ``RECIPE`` and imports torch inside functions only; an entry point names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core import registry
from workbench.core.config import TrainSpec
from workbench.core.frameworks import framework
from workbench.core.rules.values import flag_of
from workbench.errors import ConfigError, suggest

#: entry points whose objects are ``Recipe``
GROUP = "dist_workbench.recipes"
#: options of a spec that some recipes take
OPTIONS = ("model", "data", "seq_len", "lora_rank")


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
    the only ones that can train it (empty: every one of every framework). ``options``: those of ``OPTIONS`` that it
    takes; without ``sizes`` its model comes from ``--model``. ``check_data()`` raises ``ConfigError`` that names what
    is missing, ``check(spec)`` one for options that it cannot train with. ``build(spec)`` runs on a rank after the
    process group exists and returns an ``engine.base.workload.Workload`` with the same initial weights on every rank;
    it touches no global state. ``warm()`` does, once, what forked ranks can share; single-threaded.
    """

    name: str
    title: str
    sizes: Mapping[str, ModelShape]
    default_size: str
    defaults: Mapping[str, Mapping[str, Any]]
    check_data: Callable[[], None]
    build: Callable[[TrainSpec], Any]
    plugins: tuple[str, ...] = ()
    warm: Callable[[], object] = lambda: None
    options: tuple[str, ...] = ()
    check: Callable[[TrainSpec], None] = lambda spec: None

    def shape(self, size: str) -> ModelShape:
        """Shape of a size ("" is the default one); ``ConfigError`` for an unknown one."""
        size = size or self.default_size
        if not self.sizes:
            raise ConfigError(
                f"recipe {self.name} has no sizes, as --model names its model: leave out --size", field="--size"
            )
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
    plan = spec.plan
    if framework(plan.framework).adopts:
        raise ConfigError(
            f"recipe {chosen.name} has a model of PyTorch, which --framework {plan.framework} does not train: define a "
            "model of its own in a cell below %%dist_train, or choose another --framework",
            field="--framework",
        )
    if chosen.plugins and plan.plugin not in chosen.plugins:
        raise ConfigError(
            f"recipe {chosen.name} trains with {', '.join(chosen.plugins)}, not {plan.plugin}", field="--plugin"
        )
    if chosen.sizes:
        _check_shape(chosen, spec)
    check_options(spec)
    chosen.check_data()
    chosen.check(spec)


def check_options(spec: TrainSpec) -> None:
    """Refuse, with ``ConfigError``, options of recipes that the spec's recipe does not take, or that a cell has."""
    takes = recipe(spec.recipe).options if spec.recipe else ()
    for option in OPTIONS:
        if getattr(spec, option) and option not in takes:
            who = ", ".join(name for name, each in recipes().items() if option in each.options)
            what = (
                f"recipe {spec.recipe} brings its own model and data" if spec.recipe else "a cell defines these itself"
            )
            raise ConfigError(f"{flag_of(option)} is for the recipe {who}: {what}", field=flag_of(option))


def with_absolute_paths(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` whose paths do not depend on the directory of a process."""
    paths = {
        name: ",".join(str(Path(part.strip()).expanduser().absolute()) for part in options[name].split(","))
        for name in ("model", "data")
        if options.get(name)
    }
    return {**options, **paths}


def _check_shape(chosen: Recipe, spec: TrainSpec) -> None:
    shape, plan = chosen.shape(spec.size), spec.plan
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
