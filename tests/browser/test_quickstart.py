"""The first notebook, in JupyterLab and chromium: train, watch, stop, reload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.lab import LabPage, press_stop

pytestmark = pytest.mark.browser

LINE = "--recipe stdlib-llama -n 2 --steps 100000 --name quickstart"
TRAIN = f"run = get_ipython().run_line_magic('dist_train', '{LINE}')"
WAIT = "from widgets.page.serve import wait_serving_comms\nwait_serving_comms(run.ended)"
CELLS = ("%load_ext workbench", TRAIN, "import time; time.sleep(8)", WAIT)


def test_quickstart_is_seen_live_and_stopped(page: LabPage, shoot: Callable[..., Path]) -> None:
    pytest.importorskip("magics.train")
    path = page.lab.write_notebook("quickstart.ipynb", [*CELLS, "%dist_down"])
    page.open(path)
    page.run_all()
    first = page.wait_for_points(0)
    second = page.wait_for_points(first)
    third = page.wait_for_points(second)
    assert third > second > first
    page.save(path)
    page.page.reload()
    page.wait_for_points(third)
    shoot(page, "quickstart")
    press_stop(page.page)
    page.page.locator(".dw-pill", has_text="stopped").wait_for()
    assert page.hosts == {"127.0.0.1"}, f"a request left the machine: {page.hosts}"
