"""Making and finding run directories: the files, not their meaning."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from workbench.core import algorithms
from workbench.core.config import SPEC_FILE, TrainSpec
from workbench.core.environments import versions_in
from workbench.core.frameworks import framework_if_usable
from workbench.errors import RunDirectoryError
from workbench.rundir import environment
from workbench.rundir.owner import OWNER_FILE, Owner

CELL_FILE = "cell.py"
#: the source of the algorithm, where a person defined it
ALGORITHM_FILE = "algorithm.py"
#: names and modules that a cell took from elsewhere (``workbench.engine.state.cell_names``)
NAMES_FILE = "names.json"
MODULES_DIR = "modules"
CONTROL_FILE = "control.jsonl"
OUTPUT_FILE = "output.txt"
REPORT_FILE = "report.html"
#: whose versions a run records, beside those that its framework names
PACKAGES = ("dist-workbench", "ipyparallel", "ipython", "bokeh", "numpy")
_LEAST_FREE_BYTES = 32 * 2**20


def home() -> Path:
    """Where run directories are: ``$WORKBENCH_HOME``, else ``runs`` under the current directory."""
    return Path(os.environ.get("WORKBENCH_HOME") or "runs").expanduser().absolute()


def reserve(name: str) -> Path:
    """Make the empty directory of a run to come. Raises ``RunDirectoryError`` as ``create`` does."""
    parent = home()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return _make(parent, _stem(name))
    except OSError as error:
        raise _cannot_make(parent, error) from error


def create(spec: TrainSpec, cell: str | None = None, *, like: Path | None = None, at: Path | None = None) -> Path:
    """Make the directory of a new run, mode 0700, with its spec, the cell's source and who owns it.

    ``like``: the folder that the cell comes from, such as another run's directory, with what that cell took from
    elsewhere. ``at``: what ``reserve`` gave.

    Raises ``RunDirectoryError`` when it cannot be written or the disk is full; then nothing is left behind.
    """
    parent = home() if at is None else at.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
        if free < _LEAST_FREE_BYTES:
            raise RunDirectoryError(
                f"the disk of {parent} is full ({free // 2**20} MiB free): make room, or set WORKBENCH_HOME elsewhere"
            )
        path = _make(parent, _stem(spec.name)) if at is None else at
    except OSError as error:
        raise _cannot_make(parent, error) from error
    used = framework_if_usable(spec.plan.framework)
    try:
        document = {**spec.to_toml(), "versions": versions(spec.plan.framework), "machine": machine()}
        if cell is not None:
            (path / CELL_FILE).write_text(cell, encoding="utf-8")
        source = algorithms.chosen(spec.plan.algorithm).algorithm.source if spec.plan.algorithm else ""
        if source:
            (path / ALGORITHM_FILE).write_text(source, encoding="utf-8")
        config = None if used is None else used.config_file
        if config is not None:
            text = json.dumps(config.resolved(spec), indent=1) + "\n"
            (path / config.file).write_text(text, encoding="utf-8")
        if like is not None and is_run(like):
            _copy_what_the_cell_used(like, path)
        environment.record(path)
        (path / CONTROL_FILE).touch(mode=0o600)
        Owner.this_process().write(path)
        # last, and whole at once: a directory with a spec is a run, and is looked at by others from then on
        beside = path / f".{SPEC_FILE}"
        beside.write_text(tomli_w.dumps(document), encoding="utf-8")
        beside.replace(path / SPEC_FILE)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise RunDirectoryError(f"cannot write the run directory {path}: {error.strerror}") from error
    return path


def recall_algorithm(run: Path, text: str) -> None:
    """Define, in this process, the algorithm of a run's spec (``text``) that a person defined, unless it is known."""
    name = algorithms.name_of(text)
    if text and name not in algorithms.names() and (run / ALGORITHM_FILE).is_file():
        algorithms.define(name, (run / ALGORITHM_FILE).read_text(encoding="utf-8"))


def _copy_what_the_cell_used(before: Path, run: Path) -> None:
    if (before / NAMES_FILE).is_file():
        shutil.copyfile(before / NAMES_FILE, run / NAMES_FILE)
    if (before / MODULES_DIR).is_dir():
        shutil.copytree(before / MODULES_DIR, run / MODULES_DIR)


def _stem(name: str) -> str:
    return f"{datetime.now():%Y-%m-%d-%H%M%S}-{name}"


def _cannot_make(parent: Path, error: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        f"cannot make a run directory in {parent}: {error.strerror}; set WORKBENCH_HOME to a writable directory"
    )


def _make(parent: Path, stem: str) -> Path:
    """A fresh directory of that name, or of that name and a number: two processes may ask in the same second."""
    for number in itertools.count(1):
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return path
    raise AssertionError("there is always another number")


def run_directories(home_directory: Path | None = None) -> list[Path]:
    """Directories of ``home()`` that are runs or were, oldest first: those with a spec, commands or a rank's log."""
    parent = home_directory or home()
    try:
        with os.scandir(parent) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=True)]
    except OSError:
        return []
    return sorted((parent / name for name in names if _looks_like_a_run(parent / name)), key=_when)


def runs_with_spec() -> list[Path]:
    """Run directories of ``home()`` that have a spec, oldest first."""
    return [run for run in run_directories() if (run / SPEC_FILE).is_file()]


def is_run(path: Path) -> bool:
    """Whether a folder is a run, whole or not: it has an owner or commands before it has a spec, and then logs.

    A project that merely holds a spec is none.
    """
    return any((path / mark).is_file() for mark in (CONTROL_FILE, OWNER_FILE)) or any(path.glob("rank-*"))


def _looks_like_a_run(path: Path) -> bool:
    return (path / SPEC_FILE).exists() or (path / CONTROL_FILE).exists() or any(path.glob("rank-*"))


def _when(run: Path) -> tuple[str, int, str]:
    """Sorts by the second in the directory's name; within one second by when the spec was written."""
    try:
        written = (run / SPEC_FILE).stat().st_mtime_ns
    except OSError:  # it has no spec, or was removed meanwhile
        written = 0
    return run.name[: len("2026-05-01-120000")], written, run.name


#: begins the name of a run's directory: 2026-05-01-120000-
_MOMENT = re.compile(r"^\d{4}-\d\d-\d\d-\d{6}-?")


def run_name(path: Path) -> str:
    """``2026-05-01-120000-first`` -> ``first``."""
    return _MOMENT.sub("", path.name) or path.name


def versions(framework: str) -> dict[str, str]:
    """Versions of what a run with this framework depends on, without importing any of it."""
    found = {"python": platform.python_version()}
    used = framework_if_usable(framework)
    for name in (*PACKAGES, *(used.packages if used is not None else ())):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    own = versions_in(used) if used is not None else {}
    return found | {name: version for name, version in own.items() if name in found}


def machine() -> dict[str, Any]:
    """The host in a few facts."""
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
