"""Show what each plan of each framework can do, and why it cannot do the rest."""

from __future__ import annotations

import argparse

NAME = "frameworks"
HELP = "show what each plan of each framework can do"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``workbench frameworks`` has no flags."""


def run(arguments: argparse.Namespace) -> int:
    """Print the table; returns the exit code."""
    from workbench.core.plans.capability_table import capability_table

    print(capability_table())
    return 0
