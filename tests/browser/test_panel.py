"""The live panel in JupyterLab, on a run that only pretends to train."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.lab import KERNEL_READY, LabPage, press_stop

pytestmark = pytest.mark.browser

START = """
from tests.fake_run import LiveFakeRun
from widgets.panel.panel import Panel
run = LiveFakeRun({name!r}, steps={steps}, step_s=0.05, grad_every=10)
panel = Panel(run)
panel.show()
"""
#: holds the kernel until the file is there: a page that is loaded again finds its widgets when the kernel is free
GATE = """import os, time
end = time.time() + 300
while not os.path.exists({name!r}) and time.time() < end: time.sleep(0.05)"""
#: a cell that holds the kernel until the run has stopped
HOLD = "import time\nend = time.time() + 300\nwhile run.status != 'stopped' and time.time() < end: time.sleep(0.05)"


#: steps of a run that lasts as long as its kernel, however slow the page is
ENDLESS = 40_000
#: whether one cell runs or waits to run
BLOCKS = """() =>
  [...document.querySelectorAll(".jp-InputPrompt")].filter((node) => node.innerText.includes("[*]")).length === 1"""
CONNECTION = "window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel"


def start(page: LabPage, name: str, *more: str, steps: int = ENDLESS) -> Path:
    path = page.lab.write_notebook(f"{name}.ipynb", [START.format(name=name, steps=steps), *more])
    page.open(path)
    page.run_all()
    return path


def wait_for_text(page: LabPage, selector: str, text: str, timeout_s: float = 300) -> None:
    page.page.locator(selector, has_text=text).first.wait_for(timeout=timeout_s * 1000)


def wait_for_picture(page: LabPage) -> None:
    """Wait until the run has ended, its output is a picture, and the live panel stands in the picture's place."""
    page.page.wait_for_function("() => document.querySelector('.dw + img[data-dw-hidden]')")


def test_curve_moves_while_a_cell_blocks_and_after_a_reload(page: LabPage, shoot: Callable[..., Path]) -> None:
    path = start(page, "moves", GATE.format(name="moves.free"))
    first = page.wait_for_points(0)
    second = page.wait_for_points(first)
    third = page.wait_for_points(second)
    page.page.wait_for_function(BLOCKS)  # the first cell has ended
    page.save(path)
    page.page.reload()
    (page.lab.root / "moves.free").touch()
    again = page.wait_for_points(third)
    assert page.wait_for_points(again) > again
    before = page.points()
    page.page.evaluate(f"() => {CONNECTION}.reconnect()")
    page.page.wait_for_function(f"() => {CONNECTION}.connectionStatus === 'connected'")
    assert page.wait_for_points(before + 40) > before, "the connection to the kernel broke"
    shoot(page, "panel_live")
    press_stop(page.page)
    wait_for_text(page, ".dw-pill", "stopped")
    assert page.hosts == {"127.0.0.1"}, f"a request left the machine: {page.hosts}"
    assert not [error for error in page.errors if "Bokeh" in error or "panel" in error], page.errors


def test_stop_button_and_the_saved_notebook(page: LabPage, shoot: Callable[..., Path]) -> None:
    path = start(page, "stops", HOLD, "print('stop calls', run.stop_calls, run.status)")
    page.wait_for_points(0)
    before = path.stat().st_size
    stop = page.page.get_by_role("button", name="Stop training")
    stop.focus()
    page.page.keyboard.press("Enter")
    shoot(page, "panel_asks")
    page.page.keyboard.press("Escape")
    assert stop.is_enabled() and stop.inner_text() == "Stop", "the run goes on"
    page.page.keyboard.press("Enter")
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.innerText") == "Without"
    page.page.keyboard.press("Enter")
    wait_for_text(page, ".dw-pill", "stopped")
    wait_for_text(page, ".jp-OutputArea-output", "stop calls 1 stopped")
    assert not stop.is_visible(), "a run that has ended has no buttons"
    wait_for_picture(page)
    shoot(page, "panel_ended")
    saved = page.save(path)
    growth = path.stat().st_size - before
    assert growth < 300_000, f"the notebook grew by {growth} bytes"
    kinds = [set(output.get("data", {})) for output in saved.cells[0].outputs]
    assert kinds == [{"image/png", "text/plain"}]
    assert "stopped at step" in saved.cells[0].outputs[0]["data"]["text/plain"]


def test_notebook_of_a_kernel_that_is_gone_shows_the_picture(page: LabPage) -> None:
    path = start(page, "gone", steps=20)
    wait_for_picture(page)
    page.save(path)
    page.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.sessionContext.shutdown()")
    time.sleep(1)
    page.page.reload()
    picture = page.page.locator(".jp-OutputArea-output img[src^='data:image/png']")
    picture.wait_for()
    assert picture.is_visible()
    assert page.page.locator(".dw").count() == 0


def test_two_panels_at_once(page: LabPage) -> None:
    start(page, "pair", START.format(name="pair2", steps=ENDLESS))
    page.page.wait_for_function(
        "() => [...document.querySelectorAll('.dw')].filter(p => Number(p.dataset.points) > 3).length === 2"
    )
    names = page.page.locator(".dw-name").all_inner_texts()
    assert sorted(names) == ["pair", "pair2"]


WAIT = """
from widgets.page.serve import wait_serving_comms
wait_serving_comms(lambda: run.status == "stopped")
print("over")
"""


def test_waiting_cell_takes_the_stop_button(page: LabPage) -> None:
    start(page, "waits", WAIT)
    page.wait_for_points(0)
    press_stop(page.page)
    wait_for_text(page, ".jp-OutputArea-output", "over")
    wait_for_text(page, ".dw-pill", "stopped")
    assert not page.page.get_by_role("button", name="Stop training").is_visible()


CHANGE_THEME = "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })"


def test_it_follows_the_theme(page: LabPage, shoot: Callable[..., Path]) -> None:
    start(page, "dark", steps=60)
    wait_for_text(page, ".dw-pill", "finished")
    wait_for_picture(page)  # the output is replaced meanwhile
    panel = page.page.locator(".dw").first
    assert panel.get_attribute("data-mode") == "light"
    page.page.evaluate(CHANGE_THEME, "JupyterLab Dark")
    page.page.wait_for_selector(".dw[data-mode=dark]")
    shoot(page, "panel_dark")
    page.page.evaluate(CHANGE_THEME, "JupyterLab Light")
    page.page.wait_for_selector(".dw[data-mode=light]")


RESTART = "() => window.jupyterapp.shell.currentWidget.context.sessionContext.restartKernel()"
DEAD = "document.querySelector('.dw:not(.dw-machine)')?.dataset.status === 'cut'"
ENABLED = (
    "[...document.querySelectorAll('.dw-quick button, .dw-control button, .dw-control input')].some((n) => !n.disabled)"
)

KILL = """
import os, time
while not os.path.exists("kill"): time.sleep(0.05)
os.kill(os.getpid(), 9)
"""


def test_panels_of_a_kernel_that_is_gone_say_so(page: LabPage, shoot: Callable[..., Path]) -> None:
    """Restarted by a person, and killed: buttons are off, and a cell that is run again shows a live panel."""
    watch = "import os\nos.environ['WORKBENCH_HOME'] = os.getcwd()\n"
    watch += "get_ipython().config.Workbench.warm = False\n%load_ext workbench\n%dist_watch"
    start(page, "restarted", watch, "%dist_runs", KILL)
    page.wait_for_points(0)
    page.page.locator(".dw-machine .dw-meter").first.wait_for()
    page.page.locator(".dw-runs th").first.wait_for()
    assert page.page.evaluate(ENABLED)
    page.page.evaluate(RESTART)
    page.page.wait_for_function(f"() => {DEAD}")
    assert page.page.locator(".dw-pill").first.inner_text() == "lost"
    assert not page.page.evaluate(ENABLED)
    notice = page.page.locator(".dw-notice").first
    assert notice.inner_text().startswith(
        "The kernel has ended or was restarted, and the training ended with it at step"
    )
    assert notice.inner_text().endswith("No checkpoint was written, so it can only start anew")
    assert notice.evaluate("(node) => node.scrollWidth <= node.clientWidth")
    shoot(page, "panel_without_kernel")
    for selector in (".dw-machine .dw-about", ".dw-runs-trouble"):
        wait_for_text(page, selector, "The kernel has ended or was restarted")
    page.page.wait_for_function(KERNEL_READY)
    page.run_all()  # a new run in the new kernel
    page.page.wait_for_function(f"() => {DEAD.replace('cut', 'running')}")
    page.wait_for_points(0)
    (page.lab.root / "kill").touch()
    page.page.wait_for_function(f"() => {DEAD}")
    assert not page.page.evaluate(ENABLED)
