"""The notebook on reports, executed by papermill with values of its own, and the report made from it."""

from __future__ import annotations

from pathlib import Path

from bs4 import BeautifulSoup


def test_the_course_on_reports_and_its_own_report(execute, tmp_path: Path) -> None:
    from workbench.report.notebook.exporter import render_notebook

    runs, executed = execute("04_reports.ipynb", steps=8, high=1e-2)
    assert {name: (run.spec.lr, run.spec.steps, run.status) for name, run in runs.items()} == {
        "slow": (3e-4, 8, "finished"),
        "fast": (1e-2, 8, "finished"),
    }
    assert (runs["fast"].path / "report.html").exists() and (runs["fast"].path / "environment.json").exists()
    assert "slow" in (tmp_path / "slow-or-fast.html").read_text()
    page = BeautifulSoup(render_notebook(executed).read_text(), "html.parser")
    assert [panel["aria-label"] for panel in page.find_all("div", class_="panel")] == [
        "Panel of run slow",
        "Panel of run fast",
    ]
    assert len(page.find(id="runs").find_all("h3", class_="run")) == 2
    assert not page.find("img", class_="output-picture")
