"""Run a notebook for every combination of parameters, each in a kernel of its own, and compare the runs in a report.

The values replace those of the cell tagged `parameters`, as in papermill. The folder --out receives sweep.json,
report.html and a folder per combination with its notebook and runs. Every notebook runs in the folder of the original,
so that it finds the files beside it. With --parallel K, K notebooks run at a time, each on its share of the cores or
GPUs. The exit code is 0 only if every notebook ran to its end.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "sweep"
HELP = "run a notebook for a grid of parameters and compare the runs"
SWEEP_FILE = "sweep.json"
MOST_POINTS = 200


@dataclass(kw_only=True)
class Point:
    """One combination: its values, its folder, and what went wrong (``problem`` "": it ran to its end)."""

    values: dict[str, Any]
    label: str
    folder: Path
    problem: str = ""
    notebook: Any = field(default=None, repr=False)
    execution: Any = field(default=None, repr=False)

    @property
    def runs(self) -> list[Path]:
        """Directories of the runs that its notebook made, oldest first."""
        return sorted(path.parent for path in (self.folder / "runs").glob("*/spec.toml"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench sweep``."""
    parser.add_argument("notebook", type=Path, metavar="NB.ipynb", help="a notebook with a cell tagged parameters")
    parser.add_argument(
        "-p",
        "--parameter",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "VALUE"),
        help="a parameter and its values; may be repeated for a grid",
    )
    parser.add_argument(
        "--parallel", type=int, default=1, metavar="K", help="number of notebooks at a time (default: 1)"
    )
    parser.add_argument(
        "--run-name", metavar="NAME", help="the run of each notebook that is compared (default: the first)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the results (default: ./sweep-<date>-<time>)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the grid and write its report; returns the exit code."""
    from workbench.errors import ConfigError, RunDirectoryError

    grid = grid_of(arguments.parameter)
    if not 1 <= arguments.parallel <= len(grid):
        raise ConfigError(
            f"--parallel {arguments.parallel}: the grid has {len(grid)} combinations, so 1 to {len(grid)}",
            field="--parallel",
        )
    out = (arguments.out or Path(f"sweep-{datetime.datetime.now():%Y-%m-%d-%H%M%S}")).expanduser().resolve()
    places = places_of(arguments.parallel)
    points = points_of(arguments.notebook.expanduser(), grid, out)
    try:
        for point in points:
            (point.folder / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot make {out}: {error.strerror}; pass --out DIR") from error
    execute(points, places, arguments.notebook.expanduser().resolve())
    return report(points, out, arguments.notebook.name, arguments.run_name)


def grid_of(parameters: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """``[["lr", "1e-3", "3e-3"], ["tp", "1", "2"]]`` -> four combinations, the last parameter running fastest.

    Raises ``ConfigError`` for a parameter without values, named twice, or that is no Python name, and for a grid of
    more than ``MOST_POINTS`` combinations.
    """
    from workbench.errors import ConfigError

    axes: dict[str, list[Any]] = {}
    for name, *values in parameters:
        if not name.isidentifier():
            raise ConfigError(f"-p {name}: a parameter is a Python name", field="-p")
        if not values:
            raise ConfigError(f"-p {name} has no values: write -p {name} VALUE VALUE …", field="-p")
        if name in axes:
            raise ConfigError(f"-p {name} is given twice: put all its values behind one -p", field="-p")
        axes[name] = [value_of(text) for text in values]
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if len(grid) > MOST_POINTS:
        raise ConfigError(f"a grid of {len(grid)} combinations: {MOST_POINTS} at most", field="-p")
    return grid


def value_of(text: str) -> Any:
    """``"1e-3"`` -> 0.001, ``"True"`` -> True, ``"zero1"`` -> "zero1"."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (int, float, bool, str, type(None))) else text


def points_of(source: Path, grid: Sequence[dict[str, Any]], out: Path) -> list[Point]:
    """Read the notebook and set each combination into a copy of it. ``ReportError`` when it cannot be read."""
    import nbformat

    from workbench.cli.commands.execution import inject
    from workbench.errors import ReportError

    try:
        notebook = nbformat.read(source, as_version=4)
    except (OSError, ValueError, AttributeError) as error:
        raise ReportError(f"cannot read the notebook {source}: {getattr(error, 'strerror', None) or error}") from error
    points = []
    for number, values in enumerate(grid, 1):
        label = ", ".join(f"{name}={value}" for name, value in values.items())
        folder = out / f"{number:03d}-{re.sub(r'[^A-Za-z0-9=.,_-]+', '_', label)[:80]}"
        copy = nbformat.from_dict(json.loads(json.dumps(notebook)))
        inject(copy, values)
        points.append(Point(values=values, label=label, folder=folder, notebook=copy))
    return points


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one kernel of several may use: cores (None: all), GPUs as in CUDA_VISIBLE_DEVICES ("": as it is)."""

    cores: set[int] | None = None
    gpus: str = ""


def places_of(parallel: int) -> list[Place]:
    """Divides this machine among kernels that run at a time. ``ConfigError`` for more kernels than GPUs."""
    from workbench.cluster.hosts.machine import visible_device_ids
    from workbench.errors import ConfigError

    if parallel == 1:
        return [Place()]
    devices = visible_device_ids()
    if devices and len(devices) < parallel:
        raise ConfigError(
            f"--parallel {parallel} needs a GPU for each, and {len(devices)} are visible: --parallel {len(devices)}",
            field="--parallel",
        )
    cores = sorted(os.sched_getaffinity(0))
    shared = len(cores) < parallel
    return [
        Place(cores=None if shared else set(cores[slot::parallel]), gpus=",".join(devices[slot::parallel]))
        for slot in range(parallel)
    ]


def execute(points: Sequence[Point], places: Sequence[Place], source: Path) -> None:
    """Run the notebooks in the folder of ``source``, as many at a time as there are places. Each point then holds its
    outcome. Ctrl-C ends all."""
    import nbformat

    from workbench.terminal.follow import follow

    waiting = list(points)
    running: dict[int, Point] = {}

    def turn() -> bool:
        """Collect notebooks that have ended and start those that have a place; True when none is left."""
        for slot, place in enumerate(places):
            point = running.get(slot)
            if point is not None and point.execution.over():
                _take(point, source.name)
                del running[slot]
            if slot not in running and waiting:
                running[slot] = waiting.pop(0)
                _start(running[slot], place, source.parent)
        return not running

    try:
        labels = {point.folder: point.label for point in points}
        follow(
            lambda: [run for point in points for run in point.runs],
            turn,
            make_label=lambda run, name: f"{labels[run.parent.parent]}: {name}",
        )
    except KeyboardInterrupt:
        print("interrupted: ending the notebooks and their ranks", flush=True)
        for point in running.values():
            point.execution.end()
            nbformat.write(point.notebook, point.folder / source.name)
        raise


def _start(point: Point, place: Place, folder: Path) -> None:
    from workbench.cli.commands.execution import NotebookExecution

    environment = {"WORKBENCH_HOME": str(point.folder / "runs")}
    if place.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = place.gpus
    point.execution = NotebookExecution(point.notebook, folder=folder, environment=environment, cores=place.cores)
    print(f"{point.label}: started", flush=True)
    point.execution.start()


def _take(point: Point, name: str) -> None:
    import nbformat

    from workbench.cli.commands.execution import NotebookFailed

    try:
        point.execution.finish()
    except NotebookFailed as error:
        point.problem = str(error)
        print(f"{point.label}: {error}", flush=True)
    nbformat.write(point.notebook, point.folder / name)


def report(points: Sequence[Point], out: Path, name: str, run_name: str | None = None) -> int:
    """Write ``sweep.json`` and the comparison; returns the exit code."""
    from workbench.report import render, run_data
    from workbench.report.words import format_number
    from workbench.rundir import directory as run_directory

    chosen: list[tuple[Point, Path]] = []
    table = []
    for point in points:
        runs = [run for run in point.runs if run_name in (None, run_directory.run_name(run))]
        if not runs and not point.problem:
            point.problem = f"the notebook made no run{f' called {run_name!r}' if run_name else ''}"
        figures = run_data.read(runs[0]).summary() if runs else {}
        table.append(
            {"parameters": point.values, "problem": point.problem, "notebook": str(point.folder / name), **figures}
        )
        chosen += [(point, runs[0])] if runs else []
    (out / SWEEP_FILE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    for point, row in zip(points, table, strict=True):
        told = (
            point.problem.splitlines()[0]
            if point.problem
            else (
                f"last loss {format_number(row['last_loss'])}, validation loss {format_number(row['validation_loss'])}"
            )
        )
        print(f"{point.label:>30}  {told}")
    if chosen:
        title = f"Sweep of {Path(name).stem}: {', '.join(points[0].values)}"
        written = render(
            [run for _, run in chosen], out / "report.html", title=title, labels=[p.label for p, _ in chosen]
        )
        print(f"{'report':>30}  {written}")
    return 1 if any(point.problem for point in points) else 0
