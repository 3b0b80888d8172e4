"""List the runs of $WORKBENCH_HOME (default: ./runs), the newest last."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "runs"
HELP = "list the runs that are here"
COLUMNS = ("run", "status", "plan", "steps", "loss", "validation", "tokens/s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--last", type=int, metavar="N", help="the newest N only")


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from workbench import run_directory

    paths = run_directory.all_runs()[-arguments.last if arguments.last else None :]
    if not paths:
        print(f"no runs in {run_directory.home()}")
        return 0
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 3 else "right", overflow="fold")
    for path in paths:
        table.add_row(*(Text(cell) for cell in row(path)))
    console = Console()
    # a pipe has no width to keep to
    (console if console.is_terminal else Console(width=400)).print(table)
    return 0


def row(path: Path) -> tuple[str, ...]:
    """One line of the table; a run that cannot be read says so."""
    from workbench.errors import WorkbenchError
    from workbench.report import facts, words

    try:
        found = facts.read(path)
    except WorkbenchError as error:
        return (path.name, str(error), "", "", "", "", "")
    figures = found.summary()
    steps = f"{figures['steps']}/{found.spec.steps}" if found.spec else str(figures["steps"])
    numbers = (figures[key] for key in ("last_loss", "validation_loss", "tokens_per_second"))
    return (path.name, found.status, figures["plan"], steps, *(words.number(number) for number in numbers))
