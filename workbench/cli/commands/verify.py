"""Train a spec file (TOML) or a recipe a few steps under its plan and under a reference, and tell whether they train
the same, as %dist_verify does.

Exit codes: 0 the same, 1 not the same or failed, 2 wrong usage, 3 it cannot be said, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys

from workbench.cli.arguments import spec_argument
from workbench.core import flags
from workbench.run.verify_options import AGAINST_FLAG

NAME = "verify"
HELP = "tell whether a plan trains the same as one process"
_CODES = {"same": 0, "differs": 1, "undecided": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench verify``."""
    spec_argument.add_to(parser, "the spec file, or the name of a recipe (not needed with --recipe)")
    parser.add_argument("--against", **AGAINST_FLAG)
    flags.add_to(parser)


def run(arguments: argparse.Namespace) -> int:
    """Verify, print what was found, and take the ranks down; returns the exit code."""
    from workbench.run.verify import verify

    spec, options = spec_argument.chosen(
        arguments, ("recipe",), "nothing to verify: pass a spec file, or --recipe NAME"
    )
    with spec_argument.ranks_ended():
        found = verify(options, config=spec, against=arguments.against, progress=_tell)
        print(found)
        return _CODES[found.verdict]


def _tell(what: str, done: int, steps: int) -> None:
    """Overwrites one line of a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        end = "\n" if done == steps else ""
        sys.stderr.write(f"\r\033[K{what}: step {done} of {steps}{end}")
        sys.stderr.flush()
