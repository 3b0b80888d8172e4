"""Write the report of a run: one HTML file that needs no network."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "report"
HELP = "write the HTML report of a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench report``."""
    parser.add_argument("run_name", metavar="RUN", nargs="?", help="a run directory or a run's name (default: newest)")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="where to write (default: in the run directory)")


def run(arguments: argparse.Namespace) -> int:
    """Write the report; returns the exit code."""
    from workbench import run_directory
    from workbench.report import render

    given = arguments.run_name
    # a directory that lost its spec is no run to `find`, and still has a report
    path = Path(given) if given and Path(given).is_dir() else run_directory.find(given)
    print(render(path, arguments.out))
    return 0
