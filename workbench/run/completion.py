"""What can stand next in a command line: flags, recipes, plugins, names of runs. For magics and for ``workbench``."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from workbench.core import algorithms, controls
from workbench.core.config import MONITOR_LEVELS, ON_NONFINITE, PRECISIONS, TrainSpec
from workbench.core.flags import ASSIGNMENT
from workbench.core.frameworks import framework_if_usable, installed, usable
from workbench.core.recipe import recipes
from workbench.rundir.directory import run_directories, run_name

#: values of the flags given so far, as text, by the option's name
Given = Mapping[str, str]


def _plugins(given: Given) -> list[str]:
    chosen = framework_if_usable(given.get("framework", ""))
    frameworks = usable() if chosen is None else [chosen]
    return list(dict.fromkeys(plugin.name for each in frameworks for plugin in each.plugins))


def _sizes(given: Given) -> list[str]:
    known = recipes()
    chosen = [known[given["recipe"]]] if given.get("recipe") in known else known.values()
    return list(dict.fromkeys(size for recipe in chosen for size in recipe.sizes))


def _runs() -> list[str]:
    """Names of runs, the newest first."""
    return list(dict.fromkeys(run_name(path) for path in reversed(run_directories())))


def _spec_files() -> list[str]:
    return sorted(str(path) for pattern in ("*.toml", "*/*.toml") for path in Path().glob(pattern))


_VALUES: Mapping[str, Callable[[Given], Collection[str]]] = {
    "recipe": lambda given: sorted(recipes()),
    "size": _sizes,
    "plugin": _plugins,
    "framework": lambda given: installed(),
    "algorithm": lambda given: algorithms.names(),
    "precision": lambda given: PRECISIONS,
    "level": lambda given: MONITOR_LEVELS,
    "on_nonfinite": lambda given: ON_NONFINITE,
    "config": lambda given: _spec_files(),
    "spec": lambda given: [*_spec_files(), *sorted(recipes())],
}


def values(action: argparse.Action, command: str = "", given: Given | None = None) -> list[str]:
    """What an argument of ``command`` (such as ``dist_stop``) can be, as far as there is a list of it."""
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.dest in _VALUES:
        return list(_VALUES[action.dest](given or {}))
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if metavar.startswith("RUN"):
        return _runs()
    control = next((each for each in controls.CONTROLS if command.removeprefix("dist_") == each.name), None)
    if metavar == ASSIGNMENT:
        names = [each.name for each in controls.settings()] if control is None else TrainSpec().options()
        return [f"{name}=" for name in names]
    return list(control.choices) if control is not None and action.dest == "value" else []


def candidates(parser: argparse.ArgumentParser, words: Sequence[str], current: str) -> list[str]:
    """What can stand in place of ``current``, the unfinished word after ``words``; not restricted to what begins so."""
    flags = parser._option_string_actions
    waiting = flags.get(words[-1]) if words else None
    if waiting is not None and waiting.nargs != 0:
        return values(waiting, parser.prog, _given(flags, words))
    name, equals, _ = current.partition("=")
    if equals and name in flags:
        return values(flags[name], parser.prog, _given(flags, words))
    used = {id(flags[word]) for word in words if word in flags}
    found = [flag for flag, action in flags.items() if flag.startswith("--") and id(action) not in used]
    positional = [value for each in parser._get_positional_actions() for value in values(each, parser.prog)]
    if not words and "--recipe" in flags:
        positional += [name for name in sorted(recipes()) if name not in positional]
    if "_" in current:
        found = [f"--{flag[2:].replace('-', '_')}" for flag in found]
    return found if current.startswith("-") else [*positional, *found]


def _given(flags: Mapping[str, argparse.Action], words: Sequence[str]) -> dict[str, str]:
    pairs = itertools.pairwise(words)
    return {flags[word].dest: value for word, value in pairs if word in flags and flags[word].nargs != 0}
