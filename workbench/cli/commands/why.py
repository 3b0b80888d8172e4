"""Tell where each rank of a run is, who waits for whom, and what keeps them from going on, as %dist_why does.

Without RUN: the newest ranks of this user on this host, such as those of a notebook whose cell hangs. Of a run that
has ended, tells how. Changes nothing in the ranks. Exit codes: 0 told, 1 the ranks are not seen from here.
"""

from __future__ import annotations

import argparse

NAME = "why"
HELP = "tell why the ranks of a run, or of a cell, do not go on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench why``."""
    parser.add_argument("name", metavar="RUN", nargs="?", help="a run's name or directory (default: what runs now)")


def run(arguments: argparse.Namespace) -> int:
    """Print the diagnosis; returns the exit code."""
    from workbench.run.why import why

    print(why(arguments.name))
    return 0
