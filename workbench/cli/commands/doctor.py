"""Report what this machine offers and what is wrong with it, with advice. The exit code is 1 if a check fails."""

from __future__ import annotations

import argparse
import sys

NAME = "doctor"
HELP = "report what this machine offers and what is wrong with it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench doctor``."""
    parser.add_argument("--quick", action="store_true", help="leave out importing the frameworks")


def run(arguments: argparse.Namespace) -> int:
    """Print every finding; returns the exit code."""
    from rich.console import Console
    from rich.text import Text

    from workbench.cli.machine.checks import checks

    console = Console(soft_wrap=True, highlight=False)
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    failed = 0
    for check in checks(imports=not arguments.quick):
        if check.doing and not console.is_terminal:
            print(f"      {check.doing}", file=sys.stderr, flush=True)
        with console.status(check.doing or "checking"):
            findings = check.run()
        for finding in findings:
            failed += finding.level == "fail"
            advice = f"  -> {finding.advice}" if finding.advice else ""
            console.print(
                Text.assemble(
                    (f"{finding.level:>4}", styles[finding.level]), f"  {finding.what}: {finding.found}{advice}"
                )
            )
    return 1 if failed else 0
