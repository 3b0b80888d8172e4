"""Make a starter project: a spec file, a notebook and a model file, ready to train. Never overwrites a file.

``workbench new framework NAME`` makes the package of a framework of one's own, with its test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "new"
HELP = "make a starter project, or the package of a framework of your own"
_FRAMEWORK = "framework"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench new``."""
    parser.add_argument(
        "name", type=Path, metavar="NAME", help="the folder to make; its runs get the same name. Or: framework NAME"
    )
    parser.add_argument("framework", type=Path, nargs="?", metavar="FRAMEWORK", help="with framework: its name")


def run(arguments: argparse.Namespace) -> int:
    """Write the project or the package; returns the exit code."""
    from workbench.errors import ConfigError

    if arguments.framework is None and str(arguments.name) == _FRAMEWORK:
        raise ConfigError("workbench new framework NAME: name it, or give a project another name", field="NAME")
    if arguments.framework is None:
        return _project(arguments.name)
    if str(arguments.name) != _FRAMEWORK:
        raise ConfigError(
            f"workbench new {arguments.name} {arguments.framework}: one name makes a project, and 'framework NAME' a "
            "framework",
            field="NAME",
        )
    return _framework(arguments.framework)


def _project(folder: Path) -> int:
    from workbench.run import starter

    for path in starter.write(folder):
        print(path)
    print(f"train it: workbench train {folder}/spec.toml   or open {folder}/notebook.ipynb")
    return 0


def _framework(folder: Path) -> int:
    from workbench.cli.machine import framework_starter

    for path in framework_starter.write(folder):
        print(path)
    name = folder.absolute().name
    print(f"install it: python -m pip install -e {folder}   and test it: python -m pytest {folder}/tests")
    print(f"train with it: %dist_train ... --framework {name}")
    return 0
