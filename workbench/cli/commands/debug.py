"""Type commands of pdb to ranks that breakpoint() has stopped, as %dist_debug does.

Without RUN: the newest ranks of this user on this host. Commands go to all ranks that have stopped; "@1" chooses one,
"@all" all again, "c" lets them go on. Ctrl-C lets them go on past further breakpoints. Exit codes: 0 they go on, 1 no
rank is in the debugger.
"""

from __future__ import annotations

import argparse

NAME = "debug"
HELP = "talk to ranks that breakpoint() has stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench debug``."""
    parser.add_argument("name", metavar="RUN", nargs="?", help="a run's name or directory (default: what runs now)")
    parser.add_argument("-t", "--targets", metavar="RANKS", default="all", help="ranks: 0,2 or 0-3 or all (default)")


def run(arguments: argparse.Namespace) -> int:
    """Talk to the ranks; returns the exit code."""
    from workbench.run.debug import debug

    debug(arguments.name, arguments.targets)
    return 0
