"""Executing a course notebook as a reader would."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from tests.waiting import WAIT_S
from workbench.cli.machine import notebooks
from workbench.run.api import Run
from workbench.rundir.directory import run_directories


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Execute a course notebook; returns its runs by name and the executed file."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    commands = Path(sys.executable).parent  # where a reader's ``workbench`` is found
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")

    def run(name: str, **values: object) -> tuple[dict[str, Run], Path]:
        shutil.copytree(notebooks.folder() / notebooks.CELLS, tmp_path / notebooks.CELLS, dirs_exist_ok=True)
        executed = tmp_path / name
        papermill.execute_notebook(
            str(notebooks.folder() / name),
            str(executed),
            values,
            kernel_name="python3",
            cwd=str(tmp_path),
            progress_bar=False,
            start_timeout=int(WAIT_S),
            iopub_timeout=int(WAIT_S),
        )
        cells = nbformat.read(executed, 4).cells
        assert not any(o.get("name") == "stderr" for cell in cells for o in cell.get("outputs", []))
        return {run.name: run for run in map(Run, run_directories(tmp_path / "runs"))}, executed

    return run
