"""The project that ``workbench new`` makes trains as it is, and its notebook runs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat

import workbench
from workbench.cli.commands.execution import NotebookExecution, inject
from workbench.cluster.session import Session
from workbench.core import run_files
from workbench.core.config import read_spec_options
from workbench.run import starter
from workbench.run.api import Run

ROOT = str(Path(__file__).parents[2])


def test_it_trains_as_it_is(two_ranks: Session, tmp_path: Path) -> None:
    spec, cell, _ = starter.write(tmp_path / "fresh")
    run = workbench.train(read_spec_options(spec) | {"steps": 60}, cell=cell.read_text()).wait(timeout=300)
    losses = run.metrics()["loss"]
    files = [str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()]
    assert [path for path in files if not run_files.known(path)] == [], "name it in workbench/core/run_files.py"
    assert run.name == "fresh" and losses.iloc[-5:].mean() < losses.iloc[0] / 2


def test_its_notebook_runs(tmp_path: Path) -> None:
    _, _, path = starter.write(tmp_path / "fresh")
    book = nbformat.read(path, as_version=4)
    inject(book, {"steps": 20, "n": 1})
    places = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    home = path.parent / "runs"
    environment = {"PYTHONPATH": places, "WORKBENCH_HOME": str(home)}
    NotebookExecution(book, folder=path.parent, environment=environment).run(lambda: [])
    (directory,) = home.glob("*-fresh")
    assert Run(directory).status == "finished" and (directory / "report.html").exists()
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    assert "1 rank" in printed or "rank 0 ended" in printed
