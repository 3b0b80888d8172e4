"""What becomes of the panel when the run ends and its output is replaced by a picture."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.browser.static_page import StaticPanel
from tests.fake_run import make_fake_run

pytestmark = pytest.mark.browser

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
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
    panel.pump("() => Number(document.querySelector('.dw')?.dataset.points) > 0", 120)
    panel.pump(lambda: all(feed.ended.is_set() for feed in panel.feeds), 120)
    panel.open("compare")
    for feed in panel.feeds:
        feed.hello(None)  # everything anew: the page has much to draw
    png = base64.b64encode(PNG).decode()
    picture = {"kind": "picture", "length": len(png), "at": 20, "part": png[20:40]}
    shown = page.evaluate(REPLACE_OUTPUT, [panel.waiting(), picture, png])
    assert shown == "none", "not even the first frame has the picture, which is white in the dark theme"
    panel.pump("() => document.querySelector('.dw + img[data-dw-hidden]')", 120)
    assert page.locator(".dw").count() == 1
    assert page.locator(".dw").get_attribute("data-tab") == "compare"
    length = "document.querySelector('.dw-figure[data-figure=compare_loss]')?.dwPlot?.document"
    panel.pump(f"() => {length}?.get_model_by_name('run1').get_length() > 0", 120)
    assert panel.errors == []
    panel.close()
    page.close()
