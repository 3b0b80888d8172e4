"""The notebook on reports, executed by papermill with values of its own, and the report made from it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
import pytest
from bs4 import BeautifulSoup

from tests.waiting import WAIT_S
from workbench.cli.commands import notebooks
from workbench.run.api import Run


def test_the_course_on_reports_and_its_own_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.report.notebook.exporter import render_notebook

    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    executed = tmp_path / "04_reports.ipynb"
    source = notebooks.folder() / "04_reports.ipynb"
    values = {"steps": 8, "high": 1e-2}
    papermill.execute_notebook(
        str(source),
        str(executed),
        values,
        kernel_name="python3",
        cwd=str(tmp_path),
        progress_bar=False,
        start_timeout=int(WAIT_S),
        iopub_timeout=int(WAIT_S),
    )
    runs = {run.name: run for run in map(Run, (tmp_path / "runs").iterdir())}
    assert {name: (run.spec.lr, run.spec.steps, run.status) for name, run in runs.items()} == {
        "slow": (3e-4, 8, "finished"),
        "fast": (1e-2, 8, "finished"),
    }
    assert (runs["fast"].path / "report.html").exists() and (runs["fast"].path / "environment.json").exists()
    assert "slow" in (tmp_path / "slow-or-fast.html").read_text()
    assert not any(o.get("name") == "stderr" for c in nbformat.read(executed, 4).cells for o in c.get("outputs", []))
    page = BeautifulSoup(render_notebook(executed).read_text(), "html.parser")
    assert [panel["aria-label"] for panel in page.find_all("div", class_="panel")] == [
        "Panel of run slow",
        "Panel of run fast",
    ]
    assert len(page.find(id="runs").find_all("h3", class_="run")) == 2
    assert not page.find("img", class_="output-picture")
