"""Fixtures of the browser tests: JupyterLab, chromium, and where screenshots go.

Without a browser the tests skip with a reason; with ``CI`` set in the environment that is a failure.
``--screenshots DIR`` keeps the pictures (the README's is made this way).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import BROWSER_FLAGS, BROWSERS, Lab, LabPage, find_browser, running_lab

#: how often a page is asked whether what a test waits for has come; once a frame otherwise, for which it draws frames
ASK_EVERY_MS = 100


def _ask_seldom(page: Any) -> None:
    page.wait_for_function = functools.partial(page.wait_for_function, polling=ASK_EVERY_MS)


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = find_browser()
    if path is None:
        message = f"no browser: none of {', '.join(BROWSERS)} is installed (Debian: apt install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")), executable_path=path, args=BROWSER_FLAGS
        )
        context.set_default_timeout(300_000)  # the machine may be busy
        context.on("page", _ask_seldom)
        yield context
        context.close()


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Shows, with the report of a failed test, what its page showed."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if call.when == "call" and report.failed and isinstance(page, LabPage):
        try:
            shown = page.text()
        except Exception as error:  # the page may be the fault; the test has its own message
            shown = f"the page does not answer: {error}"
        report.sections.append(("what the page shows", f"{shown[-4000:]}\nerrors of the page: {page.errors}"))
    return report


@pytest.fixture
def page(browser: Any, lab: Lab) -> Iterator[LabPage]:
    opened = browser.new_page()
    opened.set_viewport_size({"width": 1100, "height": 1700})
    yield LabPage(opened, lab)
    opened.close()
    lab.end_kernels()


@pytest.fixture
def bare(browser: Any) -> Iterator[Any]:
    """An empty page, for a panel without Jupyter."""
    opened = browser.new_page()
    opened.set_viewport_size({"width": 900, "height": 1000})
    yield opened
    opened.close()


@pytest.fixture
def shoot(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[LabPage, str], Path]:
    """``shoot(page, name)`` takes a screenshot of the panel (or of what a selector finds first)."""
    directory = Path(request.config.getoption("--screenshots") or tmp_path)
    directory.mkdir(parents=True, exist_ok=True)

    def take(page: LabPage, name: str, selector: str = ".dw") -> Path:
        path = directory / f"{name}.png"
        page.page.locator(selector).first.screenshot(path=str(path))
        return path

    return take
