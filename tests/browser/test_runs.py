"""The table of runs and a comparison in JupyterLab: sorted, filtered, labelled, live, with no request that leaves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.browser.lab import LabPage

pytestmark = pytest.mark.browser

CELL = """
import os, pathlib
os.environ["WORKBENCH_HOME"] = str(pathlib.Path("many").absolute())
from IPython import get_ipython
from tests.fake_run import make_fake_run
from magics.runs import RunsMagics
for number, (name, ranks, steps) in enumerate([("alpha", 1, 60), ("beta", 2, 40), ("gamma", 4, 20)]):
    make_fake_run(f"many/2026-05-0{number + 1}-120000-{name}", ranks=ranks, steps=steps)
get_ipython().register_magics(RunsMagics)
%dist_runs
"""
COMPARE = "%dist_compare alpha beta gamma --x time"


def names(page: LabPage) -> list[str]:
    """First cells of the rows in the order shown."""
    cells = page.page.locator(".dw-runs tbody tr td:nth-child(2)").all_text_contents()
    return [cell.rsplit("-", 1)[1] for cell in cells]


def test_table_and_comparison(page: LabPage, tmp_path: Path) -> None:
    path = page.lab.write_notebook("history.ipynb", [CELL, COMPARE])
    page.open(path)
    page.run_all()
    table = page.page.locator(".dw-runs")
    table.locator("tbody tr").nth(2).wait_for()
    assert names(page) == ["gamma", "beta", "alpha"]  # the newest first

    for _ in range(2):  # numbers: largest first, then the other way round
        table.get_by_role("button", name="ranks").click()
    assert names(page) == ["alpha", "beta", "gamma"]
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("ranks")
    table.get_by_label("Filter").fill("BETA finished")
    assert names(page) == ["beta"] and "1 of 3" in table.locator(".dw-runs-count").inner_text()
    table.get_by_label("Filter").fill("")

    tags = table.locator("tbody tr", has_text="beta").locator("td.dw-edit").first
    tags.dblclick()
    page.page.keyboard.type("best <i>one</i>")
    page.page.keyboard.press("Enter")
    table.locator("tbody tr", has_text="<i>one</i>").wait_for()
    stored = page.lab.root / "many" / "2026-05-02-120000-beta" / "labels.json"
    deadline = time.monotonic() + 120
    while not stored.exists() or json.loads(stored.read_text())["tags"] != ["<i>one</i>", "best"]:
        assert time.monotonic() < deadline, "the tags were not stored"
        page.page.wait_for_timeout(50)

    for name in ("alpha", "gamma"):
        table.get_by_label(f"compare 2026-05-0{1 if name == 'alpha' else 3}-120000-{name}").check()
    line = table.locator(".dw-runs-line").inner_text()
    assert line == "%dist_compare 2026-05-01-120000-alpha 2026-05-03-120000-gamma"

    figures = page.page.locator("[data-figures='4']")
    figures.wait_for()
    assert page.page.locator(".dw-cmp caption", has_text="Scaling").count() == 1
    page.page.locator("[role=img][aria-label=Loss]").scroll_into_view_if_needed()
    page.page.wait_for_timeout(500)
    figures.screenshot(path=str(tmp_path / "curves.png"))
    page.page.locator(".dw-runs").screenshot(path=str(tmp_path / "runs.png"))
    saved = page.save(path)
    assert "image/png" in saved.cells[1].outputs[0].data and len(path.read_bytes()) < 200_000
    assert page.hosts == {"127.0.0.1"}, f"a request left the machine: {page.hosts}"
    assert not [error for error in page.errors if "runs" in error or "overlay" in error or "Bokeh" in error], (
        page.errors
    )
