"""How long a button of the panel takes while a cell waits (``%dist_train --wait``): from the click to the step boundary
at which both ranks did it, and to the word in the panel. In a real JupyterLab in chromium, steps of some 30 ms.

    python tests/benchmarks/buttons.py [--times 20]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.benchmarks.machine import describe_machine
from tests.browser.lab import BROWSER_FLAGS, LabPage, find_browser, press_stop, running_lab
from tests.browser.test_real_run import LOAD, SMALL, Pressed, open_run

GOAL_S = 1.0


def press(panel: Pressed, label: str, name: str, state: str) -> tuple[float, float]:
    """Seconds from a click to the ranks' answer, and to the panel's word."""
    began = time.monotonic()
    panel.answer(name, panel.button(label))
    panel.page.page.locator(".dw-pill", has_text=state).last.wait_for()
    return panel.delays[name], time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=20)
    times = parser.parse_args().times
    print(describe_machine())
    done, said = [], []
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder)) as lab, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=BROWSER_FLAGS)
        page = LabPage(browser.new_page(), lab)
        cell = SMALL.format(name="buttons").replace("%%dist_train", "%%dist_train --wait")
        page.open(lab.write_notebook("buttons.ipynb", [LOAD, cell, "%dist_down"]))
        page.run_all()
        panel = open_run(page, "buttons", "overview")
        for _ in range(times):
            for label, name, state in (
                ("Pause training", "pause", "paused"),
                ("Resume training", "resume", "running"),
            ):
                effect, word = press(panel, label, name, state)
                done.append(effect)
                said.append(word)
        panel.answer("stop", lambda: press_stop(page.page))
        browser.close()
    for what, seconds in (("the ranks did it", done), ("the panel said so", said)):
        median, most = statistics.median(seconds), max(seconds)
        print(f"{what}: median {median:.2f} s, longest {most:.2f} s of {len(seconds)} clicks (goal < {GOAL_S:.0f} s)")


if __name__ == "__main__":
    main()
