"""Run the quickstart notebook without a browser and write the executed notebook, summary.json and report.html.

The flags replace the parameters of the notebook. The exit code is 0 only if the notebook ran to its end, its run
finished, and all three files were written. Ctrl-C ends the kernel of the notebook and its ranks.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.core import flags
from workbench.core.frameworks import DEFAULT_FRAMEWORK, framework
from workbench.rundir.directory import REPORT_FILE

NAME = "demo"
HELP = "run the quickstart notebook without a browser and write its report"
RUN_NAME = "quickstart"
#: option -> parameter of the notebook, as the cell tagged `parameters` names it
PARAMETERS = {"recipe": "recipe", "ranks": "n", "plugin": "plugin", "tp": "tp", "pp": "pp", "steps": "steps"}
SUMMARY_FILE = "summary.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench demo``."""
    flags.add_to(parser, PARAMETERS)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the results (default: ./demo-<date>-<time>)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Execute the notebook and report its run; returns the exit code."""
    from workbench.cli.machine import notebooks

    out = (arguments.out or Path(f"demo-{datetime.datetime.now():%Y-%m-%d-%H%M%S}")).expanduser().resolve()
    source = notebooks.folder() / notebooks.QUICKSTART
    given = parameters_of(arguments)
    check(source, given)
    with _written(out):
        out.mkdir(parents=True, exist_ok=True)
    return execute(source, given, out)


def parameters_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The notebook's parameters that were given; tp and pp bring the plugin and the ranks that they need."""
    given = {PARAMETERS[option]: value for option, value in flags.options_of(arguments).items()}
    from workbench.cluster.hosts.machine import visible_device_ids

    block = given.get("tp", 1) * given.get("pp", 1)
    if block > 1:
        split = [option for option in ("tp", "pp") if given.get(option, 1) > 1]
        given.setdefault("plugin", framework(DEFAULT_FRAMEWORK).plugin_with(split).name)
        given.setdefault("n", block)
    elif len(visible_device_ids()) == 1:
        given.setdefault("n", 1)  # the notebook's two ranks would need two GPUs
    return given


def check(source: Path, given: dict[str, Any]) -> None:
    """``ConfigError`` for parameters that the notebook's first training would refuse, before anything is started."""
    import nbformat

    from workbench.cli.commands.execution import TAG
    from workbench.run.resolve import resolve

    values: dict[str, Any] = {}
    for cell in nbformat.read(source, as_version=4).cells:
        if TAG in cell.metadata.get("tags", []):
            for line in ast.parse(cell.source).body:
                if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                    values[line.targets[0].id] = ast.literal_eval(line.value)
    values |= given
    options = {option: values[name] for option, name in PARAMETERS.items() if name in values}
    resolve(options, default_ranks=1)


def execute(source: Path, parameters: dict[str, Any], out: Path) -> int:
    """Execute a notebook whose run is called ``quickstart`` into ``out``; returns the exit code."""
    import nbformat

    from workbench.cli.commands.execution import NotebookExecution, NotebookFailed, inject

    notebook = nbformat.read(source, as_version=4)
    inject(notebook, parameters)
    executed = out / source.name
    home = out / "runs"
    before = set(home.glob("*"))
    execution = NotebookExecution(notebook, folder=out, environment={"WORKBENCH_HOME": str(home)})
    try:
        execution.run(lambda: sorted({p.parent for p in home.glob("*/spec.toml")} - before))
    except NotebookFailed as error:
        print(f"\n{error}\n\nthe notebook up to there: {executed}")
        return 1
    finally:
        with _written(executed):
            nbformat.write(notebook, executed)
    return _keep(sorted(set(home.glob(f"*-{RUN_NAME}*")) - before), executed, out)


@contextlib.contextmanager
def _written(file: Path) -> Iterator[None]:
    """``RunDirectoryError`` naming the file that cannot be written."""
    from workbench.errors import RunDirectoryError

    try:
        yield
    except OSError as error:
        raise RunDirectoryError(f"cannot write {file}: {error.strerror}; make room, or pass --out DIR") from error


def _keep(runs: list[Path], executed: Path, out: Path) -> int:
    """Write the summary and the report of the notebook's first run, and say where everything is."""
    from workbench.report import render, run_data
    from workbench.report.words import format_number

    if not runs:
        print(f"the notebook made no run called {RUN_NAME!r}: see {executed}")
        return 1
    found = run_data.read(runs[0])
    figures = found.summary()
    summary = out / SUMMARY_FILE
    with _written(summary):
        summary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    with _written(out / REPORT_FILE):
        report = render(runs[0], out / REPORT_FILE)
    for name in ("plan", "first_loss", "last_loss", "validation_loss", "tokens_per_second", "seconds"):
        value = figures[name]
        print(f"{name.replace('_', ' '):>18}  {value if isinstance(value, str) else format_number(value)}")
    for name, path in (("run", runs[0]), ("notebook", executed), ("summary", summary), ("report", report)):
        print(f"{name:>18}  {path}")
    if found.status != "finished":
        print(f"the run ended as {found.status}, not finished")
        return 1
    return 0
