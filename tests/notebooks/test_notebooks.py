"""Each tutorial notebook, executed as a reader would, with few steps."""

import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from workbench.cli.commands import demo
from workbench.cli.machine import notebooks
from workbench.run.api import Run

BOOKS = sorted(notebooks.folder().glob("*.ipynb"))


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_clean(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert all(cell.get("outputs", []) == [] and cell.id for cell in book.cells)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in book.cells) == 1


def test_a_copy_has_the_cells_that_notebooks_run_and_keeps_what_was_changed(tmp_path: Path) -> None:
    copy = notebooks.copied_to(tmp_path)
    changed = copy / notebooks.CELLS / "tensor_plan.py"
    assert {path.name for path in copy.glob("*.ipynb")} == {path.name for path in BOOKS} and changed.is_file()
    changed.write_text("mine")
    notebooks.copied_to(tmp_path)
    assert changed.read_text() == "mine"


@pytest.mark.parametrize(
    "parameters",
    [{"steps": 20}, {"recipe": "digits-vit", "plugin": "hybrid", "tp": 2, "steps": 20}],
    ids=["default", "digits-tp2"],
)
def test_the_quickstart_does_what_it_says(tmp_path: Path, few_figures: None, parameters: dict[str, object]) -> None:
    from workbench.report.notebook.exporter import render_notebook

    assert demo.execute(notebooks.folder() / notebooks.QUICKSTART, parameters, tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (
        summary["steps"] == 20
        and summary["ranks"] == 2
        and summary["recipe"] == parameters.get("recipe", "stdlib-llama")
    )
    assert summary["last_loss"] < summary["first_loss"] and summary["tokens_per_second"] > 0
    runs = {run.name: run for run in map(Run, (tmp_path / "runs").iterdir())}
    assert set(runs) == {"quickstart", "other-plan", "own-model"}
    assert {run.status for run in runs.values()} == {"finished"}
    first, other = (runs[name].metrics()["loss"] for name in ("quickstart", "other-plan"))
    assert first.iloc[0] == pytest.approx(other.iloc[0], abs=1e-4)
    assert runs["own-model"].metrics()["loss"].iloc[-1] < 0.5
    assert isinstance(runs["quickstart"].gradients(), pd.DataFrame) and len(runs["quickstart"].gradients())
    book = nbformat.read(tmp_path / notebooks.QUICKSTART, as_version=4)
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    assert "I am rank 0 of 2" in printed and "I am rank 1 of 2" in printed and "ended" in printed
    assert not any(output.get("name") == "stderr" for cell in book.cells for output in cell.get("outputs", []))
    page = BeautifulSoup(render_notebook(tmp_path / notebooks.QUICKSTART).read_text(), "html.parser")
    panels = [panel["aria-label"] for panel in page.find_all("div", class_="panel")]
    assert panels == [f"Panel of run {name}" for name in ("quickstart", "other-plan", "own-model")]
