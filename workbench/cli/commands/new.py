"""Make a starter project: a spec file, a notebook and a model file, ready to train. Never overwrites a file."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "new"
HELP = "make a starter project"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench new``."""
    parser.add_argument("name", type=Path, metavar="NAME", help="the folder to make; its runs get the same name")


def run(arguments: argparse.Namespace) -> int:
    """Write the project; returns the exit code."""
    from workbench.run import starter

    for path in starter.write(arguments.name):
        print(path)
    print(f"train it: workbench train {arguments.name}/spec.toml   or open {arguments.name}/notebook.ipynb")
    return 0
