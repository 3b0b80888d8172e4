"""Predict what each rank holds and sends under every parallel plan of a recipe or a spec file, before it is trained.

It takes the flags of `workbench train`. Options of the plan that are given are kept, the others are varied. Exit codes:
0 some plan fits, 1 none does, 2 wrong usage.
"""

from __future__ import annotations

import argparse

from workbench.cli.arguments import spec_argument
from workbench.core import flags
from workbench.run.planning.options import OPTIONS

NAME = "plans"
HELP = "what each rank will hold under each parallel plan, before anything is trained"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench plans``."""
    spec_argument.add_to(parser, "the spec file, or the name of a recipe")
    for name, keywords in OPTIONS:
        if name != "--config":
            parser.add_argument(name, **keywords)
    flags.add_to(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the plans; returns the exit code."""
    from workbench.run.planning.plans import plans

    spec, options = spec_argument.chosen(
        arguments, ("recipe", "resume"), "nothing to plan: pass a spec file or --recipe NAME"
    )
    with spec_argument.ranks_ended():
        found = plans(
            options,
            config=spec,
            memory=arguments.memory,
            calibrate=not arguments.no_calibrate,
            tries=arguments.tries or 0,
        )
    print(found)
    return 0 if found.chosen is not None and found.chosen.fits else 1
