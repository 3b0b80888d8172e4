"""The table of runs and a comparison in JupyterLab: sorted, filtered, labelled, live, with no request that leaves."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import LabPage
from widgets.page import bundle
from widgets.runs import message
from workbench.history.row import RunRow

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
    return list(page.page.locator(".dw-runs tbody tr td:nth-child(2)").all_text_contents())


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
    deadline = time.monotonic() + 300
    while not stored.exists() or json.loads(stored.read_text())["tags"] != ["<i>one</i>", "best"]:
        assert time.monotonic() < deadline, "the tags were not stored"
        page.page.wait_for_timeout(50)

    for name in ("alpha", "gamma"):
        table.get_by_label(f"compare 2026-05-0{1 if name == 'alpha' else 3}-120000-{name}").check()
    line = table.locator(".dw-runs-line").inner_text()
    assert line == "%dist_compare 2026-05-01-120000-alpha 2026-05-03-120000-gamma"

    figures = page.page.locator("[data-figures='7']")
    figures.wait_for()
    assert page.page.locator(".dw-cmp caption", has_text="Scaling").count() == 1
    told = page.page.locator(".jp-CodeCell").nth(1).inner_text()
    assert "gamma has the lowest validation loss at step 20" in told, "compared at one place, which is said"
    assert "changed while training" in told and "0.0015 at step 15" in told
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


STATES = ("finished", "running", "paused", "failed", "lost")
#: colours of JupyterLab's themes: surface, text
THEMES = {"light": ("#ffffff", "#212121"), "dark": ("#111111", "#ffffff")}


def show_table(page: Any, *, width: int, theme: str) -> Any:
    """The table of runs in a bare page, in the width that JupyterLab leaves to an output of a window of 1280 px."""
    back, ink = THEMES[theme]
    named = zip(("first", "second", "long-name-of-a-run", "d", "e"), STATES, strict=True)
    rows = [
        RunRow(directory=f"2026-11-{day:02d}-120758-{name}", name=name, when=1.79e9 + 1e5 * day, recipe="stdlib-llama",
               plan="dp2 tp2", ranks=4, steps=1200, steps_planned=12000, best_loss=2.3456,
               best_validation=2.4567, tps=12345.6, state=state, disk_bytes=123_400_000, tags=("baseline",),
               notes="with a longer warm-up of the learning rate")
        for day, (name, state) in enumerate(named, 1)
    ]  # fmt: skip
    source = base64.b64encode(bundle.script("runs", ("link",)).encode()).decode()
    style = (bundle.STATIC / "runs.css").read_text()
    page.set_content(
        f"<!doctype html><style>{style}</style><body style='margin:0;background:{back};--jp-layout-color0:{back};"
        f"--jp-ui-font-color0:{ink};--jp-ui-font-color1:{ink}'><div id=at style='width:{width}px'></div>"
    )
    page.evaluate(
        """async ([source, rows]) => {
            const { default: widget } = await import(`data:text/javascript;base64,${source}`);
            const heard = [];
            const model = { on: (name, call) => name === "msg:custom" && heard.push(call), off() {}, send() {} };
            widget.render({ model, el: document.getElementById("at") });
            for (const call of heard) call(rows);
        }""",
        [source, message(rows)],
    )
    return page.locator(".dw-runs")


@pytest.mark.parametrize("theme", THEMES)
def test_the_last_columns_are_in_view_and_states_readable(browser: Any, tmp_path: Path, theme: str) -> None:
    page = browser.new_page()
    table = show_table(page, width=900, theme=theme)
    table.screenshot(path=str(tmp_path / f"runs-{theme}.png"))
    over = "() => { const box = document.querySelector('.dw-runs-scroll'); return box.scrollWidth - box.clientWidth }"
    assert page.evaluate(over) <= 0
    assert table.locator("tbody tr").first.locator("td").last.get_attribute("title").startswith("with a longer")
    back = [int(THEMES[theme][0][at : at + 2], 16) / 255 for at in (1, 3, 5)]
    for state in STATES:
        cell = table.locator(f"[data-state={state}] [data-column=state]")
        colour = cell.evaluate(COLOUR_OF)
        assert cell.inner_text() == state and contrast(colour, back) >= 4.5, (state, colour)
    page.close()


#: the colour of an element's text as sRGB, 0 to 1, however the browser writes it
COLOUR_OF = """(element) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
    canvas.fillStyle = getComputedStyle(element).color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)].map((part) => part / 255);
}"""


def contrast(a: list[float], b: list[float]) -> float:
    """Contrast ratio of two sRGB colours (WCAG 2.2, 1.4.3)."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)
