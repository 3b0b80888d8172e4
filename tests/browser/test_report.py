"""The report in a real browser with the network cut."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_run import make_fake_run
from workbench.plots import plots
from workbench.report import render

pytestmark = pytest.mark.browser


@pytest.fixture
def offline(browser: Any) -> Iterator[Any]:
    browser.set_offline(True)
    page = browser.new_page()
    yield page
    page.close()
    browser.set_offline(False)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_it_draws_every_figure_and_asks_for_nothing(offline: Any, tmp_path: Path, scheme: str, width: int) -> None:
    hostile = "<img src=http://example.invalid/x onerror=alert(1)>$$x$$"
    report = render(make_fake_run(tmp_path, ranks=2, steps=200, names=[hostile, "b", "c"]))
    asked: list[str] = []
    said: list[str] = []
    offline.on("request", lambda request: asked.append(request.url))
    offline.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    offline.on("pageerror", lambda error: said.append(str(error)))
    offline.set_viewport_size({"width": width, "height": 900})
    offline.emulate_media(color_scheme=scheme)
    offline.goto(report.as_uri())
    offline.wait_for_selector(f"html[data-drawn='{len(plots())}']", timeout=30_000)
    offline.wait_for_timeout(300)
    assert offline.locator(".plot canvas").count() >= len(plots())
    assert said == [] and [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert offline.evaluate("document.documentElement.scrollWidth") <= width
