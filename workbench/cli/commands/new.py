"""Make a starter project: a spec, a notebook and a model file that train at once. Nothing is ever overwritten."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "new"
HELP = "make a starter project"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench new``."""
    parser.add_argument("name", type=Path, metavar="NAME", help="the folder to make; its name becomes that of the runs")


def run(arguments: argparse.Namespace) -> int:
    """Write the project; returns the exit code."""
    from workbench.run import starter

    for path in starter.write(arguments.name):
        print(path)
    print(f"train it: workbench train {arguments.name}/spec.toml   or open {arguments.name}/notebook.ipynb")
    return 0
