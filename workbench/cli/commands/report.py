"""Write the report of runs or of a notebook as one HTML file that needs no network. Several runs are compared."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "report"
HELP = "write the HTML report of runs or of a notebook"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench report``."""
    parser.add_argument(
        "run_names",
        metavar="RUN",
        nargs="*",
        help="run directories or names of runs (default: the newest), or one notebook file (.ipynb)",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="where to write (default: in the run directory)")
    parser.add_argument("--pdf", action="store_true", help="write a PDF, with this machine's Chromium, instead of HTML")
    parser.add_argument(
        "--light",
        action="store_true",
        help="static pictures instead of interactive figures: a small file without scripts",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the report; returns the exit code."""
    from workbench.errors import ConfigError

    names = arguments.run_names
    options = {"pdf": arguments.pdf, "light": arguments.light}
    notebooks = [name for name in names if name.endswith(".ipynb")]
    if notebooks and len(names) > 1:
        raise ConfigError(f"a report covers either one notebook or several runs, not {', '.join(names)}", field="RUN")
    if notebooks:
        from workbench.report.notebook.exporter import render_notebook

        print(render_notebook(names[0], arguments.out, **options))
        return 0
    from workbench.report import render
    from workbench.rundir.state import find

    # a directory that lost its spec is no run to `find`, and still has a report
    paths = [Path(name) if name and Path(name).is_dir() else find(name) for name in names or [None]]
    print(render(paths, arguments.out, **options))
    return 0
