"""What becomes of the panel when the run ends and its output is replaced by a picture."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import pytest

from tests.browser.static_page import StaticPanel
from tests.fake_run import make_fake_run

pytestmark = pytest.mark.browser

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PICTURE = {
    "kind": "picture",
    "length": len(base64.b64encode(PNG)),
    "at": 20,
    "part": base64.b64encode(PNG).decode()[20:40],
}
#: JupyterLab handles the update of an output at once, while the page may still draw what came before
REPLACE_OUTPUT = """([messages, picture, png]) => {
  for (const [content, buffers] of messages) fromKernel(content, buffers);
  fromKernel(picture, []);
  takeOutputAway();
  const image = document.createElement("img");
  image.src = "data:image/png;base64," + png;
  document.getElementById("panel").append(image);
  return new Promise((painted) => requestAnimationFrame(() => painted(getComputedStyle(image).display)));
}"""


def test_a_picture_that_comes_while_the_page_draws_keeps_the_tab_that_was_opened(browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    panel = StaticPanel(page, make_fake_run(tmp_path / "one", steps=60), make_fake_run(tmp_path / "two", steps=40))
    panel.pump("() => Number(document.querySelector('.dw')?.dataset.points) > 0")
    panel.pump(lambda: all(feed.ended.is_set() for feed in panel.feeds))
    panel.open("compare")
    for feed in panel.feeds:
        feed.hello(None)  # everything anew: the page has much to draw
    shown = page.evaluate(REPLACE_OUTPUT, [panel.waiting(), PICTURE, base64.b64encode(PNG).decode()])
    assert shown == "none", "not even the first frame has the picture, which is white in the dark theme"
    panel.pump("() => document.querySelector('.dw + img[data-dw-hidden]')")
    assert page.locator(".dw").count() == 1
    assert page.locator(".dw").get_attribute("data-tab") == "compare"
    length = "document.querySelector('.dw-figure[data-figure=compare_loss]')?.dwPlot?.document"
    panel.pump(f"() => {length}?.get_model_by_name('run1').get_length() > 0")
    assert panel.errors == []
    panel.close()
    page.close()


#: a slow front end takes the output away, and shows the picture later; all messages come between
REMOVE_OUTPUT = """([messages, picture, cleansFirst]) => {
  fromKernel(picture, []);
  if (cleansFirst) takeOutputAway();
  document.querySelector(".dw").remove();
  for (const [content, buffers] of messages) fromKernel(content, buffers);
}"""
SHOW_PICTURE = """(png) => {
  const image = document.createElement("img");
  image.src = "data:image/png;base64," + png;
  document.getElementById("panel").append(image);
}"""


@pytest.mark.parametrize("cleans_first", [True, False])
def test_a_panel_that_is_out_of_the_page_is_drawn_when_its_picture_comes(
    browser: Any, tmp_path: Path, cleans_first: bool
) -> None:
    page = browser.new_page()
    panel = StaticPanel(page, make_fake_run(tmp_path / "one", steps=60), make_fake_run(tmp_path / "two", steps=40))
    wait_for_all(panel)
    page.evaluate(REMOVE_OUTPUT, [panel.waiting(), PICTURE, cleans_first])
    panel.pump(timeout_s=1.0, fails=False)
    page.evaluate(SHOW_PICTURE, base64.b64encode(PNG).decode())
    if not cleans_first:
        page.evaluate("() => takeOutputAway()")
    panel.pump("() => Number(document.querySelector('.dw')?.dataset.points) > 0")
    panel.open("compare")
    assert page.locator(".dw").count() == 1
    assert panel.errors == []
    panel.close()
    page.close()


def test_a_page_whose_first_messages_were_lost_asks_again(browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    panel = StaticPanel(page, make_fake_run(tmp_path / "one", steps=60), make_fake_run(tmp_path / "two", steps=40))
    wait_for_all(panel)
    assert {content["kind"] for content, _ in panel.waiting()} >= {"bokeh", "full"}  # and handed to nobody
    page.evaluate("() => { const now = Date.now; Date.now = () => now() + 9000; }")
    panel.pump("() => Number(document.querySelector('.dw')?.dataset.points) > 0")
    panel.open("compare")
    assert panel.errors == []
    panel.close()
    page.close()


def wait_for_all(panel: StaticPanel) -> None:
    """Wait until the feeds have ended, and have answered the page; nothing is handed to the page."""
    deadline = time.monotonic() + 300
    while panel.kinds().count("full") < len(panel.feeds) or not all(feed.ended.is_set() for feed in panel.feeds):
        panel.page.wait_for_timeout(20)
        assert time.monotonic() < deadline
