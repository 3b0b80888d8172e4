"""Panels in Notebook 7, tabs while a cell blocks, controls in a waiting cell, two runs, the machine."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import LabPage, press_stop
from tests.browser.test_panel import ENDLESS, GATE, HOLD, START, start, wait_for_text

pytestmark = pytest.mark.browser

TAB = ".dw [role=tab][id$='-{}']"
ASKED = "print('asked', run.controls)"
LOG = """
from workbench.telemetry.store import Store
store = Store(run.path)
store.refresh()
events = store.table("events")
own = events["kind"] == "control"
print("in the logs:", sorted(zip(*(events[key][own].tolist() for key in ("name", "value", "rank")))))
"""


def test_tabs_and_buttons_work_while_a_cell_blocks(page: LabPage) -> None:
    """Figures of a tab that is opened now, and every button: its effect is in each rank's log."""
    start(page, "steered", HOLD, ASKED, LOG)
    page.wait_for_points(0)
    page.page.locator(TAB.format("ranks")).click()
    page.page.locator(".dw-figure[data-figure=lag] canvas").first.wait_for()
    page.page.locator(TAB.format("controls")).click()
    field = page.page.get_by_role("textbox", name="Learning rate")
    field.fill("1e-4")
    field.press("Enter")
    wait_for_text(page, ".dw-table td", "1e-4")
    page.page.get_by_role("button", name="Pause training").click()
    began = time.monotonic()
    wait_for_text(page, ".dw-pill", "paused")
    print(f"paused after {time.monotonic() - began:.2f} s")
    step = page.page.locator(".dw-count").inner_text()
    one = page.page.locator(".dw-control[data-control=step]")
    one.locator("input").fill("1")
    one.get_by_role("button").click()
    page.page.wait_for_function("(before) => document.querySelector('.dw-count').innerText !== before", arg=step)
    page.page.get_by_role("button", name="Resume training").click()
    wait_for_text(page, ".dw-pill", "running")
    page.page.get_by_role("button", name="Write a checkpoint now").click()
    press_stop(page.page)
    wait_for_text(page, ".dw-pill", "stopped")
    names = (
        "[('lr', 0.0001), ('pause', None), ('step', 1), ('resume', None), ('checkpoint', None), ('stop', 'checkpoint')]"
    )
    wait_for_text(page, ".jp-OutputArea-output", f"asked {names}")
    wait_for_text(page, ".jp-OutputArea-output", "('lr', '0.0001', 0), ('lr', '0.0001', 1)")
    assert page.hosts == {"127.0.0.1"}, f"a request left the machine: {page.hosts}"


def test_notebook_7(page: LabPage) -> None:
    """The classic notebook's successor: live while a cell blocks, dark as it is, alive when a slow page is reloaded."""
    cells = [start_source("seven"), GATE.format(name="seven.free")]
    path = page.lab.write_notebook("seven.ipynb", cells)
    open_in_notebook(page, path)
    for _ in cells:
        page.page.keyboard.press("Shift+Enter")
        time.sleep(0.3)
    first = page.wait_for_points(0)
    second = page.wait_for_points(first)
    page.save(path)
    lost = lose_widget(page)
    page.page.reload()
    (page.lab.root / "seven.free").touch()
    assert page.wait_for_points(second) > second
    assert lost, "jupyterlab_widgets asks for widgets in another way: is widgets/static/reload.js still needed?"
    assert any("widget model not found" in error for error in page.errors), "the output was not lost"
    press_stop(page.page)
    wait_for_text(page, ".dw-pill", "stopped")
    assert page.hosts == {"127.0.0.1"}, f"a request left the machine: {page.hosts}"


def lose_widget(page: LabPage) -> list[str]:
    """Let the page's next request for a widget fail and be handled once widgets are restored, as on a slow page.

    Returns a list, which has the address of the script of jupyterlab_widgets once the page has loaded it.
    """
    request = re.compile(r"await (\w)\.get_model\((\w\.model_id)\)")
    late = (
        r"await (window.dwLost ? \1.get_model(\2) : new Promise((found, lost) => { window.dwLost = setInterval(() => {"
        r" if (\1.restoredStatus) { clearInterval(window.dwLost); lost(Error('widget model not found')); } }, 20); }))"
    )
    changed: list[str] = []

    def answer(route: Any) -> None:
        response = route.fetch()
        text, found = request.subn(late, response.text())
        if found:
            changed.append(route.request.url)
        route.fulfill(response=response, body=text)

    page.page.route("**/jupyterlab-manager/static/*.js*", answer)
    return changed


def test_two_runs_and_the_machine(page: LabPage, shoot: Callable[..., Path]) -> None:
    source = """
import os
from tests.fake_run import make_fake_run
os.environ["WORKBENCH_HOME"] = os.getcwd() + "/kept"
make_fake_run("kept/2026-01-01-120000-one", steps=60)
make_fake_run("kept/2026-01-01-120001-two", steps=40, ranks=3)
get_ipython().config.Workbench.warm = False
get_ipython().run_line_magic("load_ext", "workbench")
"""
    path = page.lab.write_notebook("watched.ipynb", [source, "%dist_watch one two", "%dist_watch"])
    page.open(path)
    page.run_all()
    page.page.locator(".dw-meter").nth(1).wait_for()
    wait_for_text(page, ".dw-machine .dw-note", "No ranks are up")
    panel = page.page.locator(".dw:not(.dw-machine)").first
    panel.locator(TAB.format("compare").removeprefix(".dw ")).click()
    page.page.wait_for_function(
        "() => document.querySelector('.dw-figure[data-figure=compare_loss]')?.dwPlot?.document"
        ".get_model_by_name('run1').get_length() === 40"
    )
    shown = panel.locator(".dw-names select option").all_inner_texts()
    assert shown == ["2026-01-01-120000-one", "2026-01-01-120001-two"]
    shoot(page, "compared")
    shoot(page, "machine", ".dw-machine")


def start_source(name: str) -> str:
    return START.format(name=name, steps=ENDLESS)


def open_in_notebook(page: LabPage, path: Path) -> None:
    """Open with Notebook 7 (served beside JupyterLab) and wait for its kernel."""
    page.page.goto(f"{page.lab.url}notebooks/{path.relative_to(page.lab.root)}?token={page.lab.token}")
    page.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.page.locator(".jp-NotebookKernelStatus, .jp-Notebook").first.wait_for()
    page.page.wait_for_function(
        "() => window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'"
    )
    page.page.locator(".jp-CodeCell .jp-InputArea-prompt").first.click()
    assert json.loads(path.read_text())["nbformat"] == 4
