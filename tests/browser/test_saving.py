"""``%dist_report --notebook`` has the page save the notebook first: its report holds what was run a moment ago."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.lab import LabPage
from tests.browser.test_watch import open_in_notebook

pytestmark = pytest.mark.browser

CELLS = (
    # a page on a busy machine takes longer to save
    "import widgets.page.save\nwidgets.page.save.WAIT_S = 120\n"
    "from magics.report import ReportMagics\nget_ipython().register_magics(ReportMagics)",
    "print('six times seven is', 6 * 7)",
    "%dist_report --notebook",
)


@pytest.mark.parametrize("opened", [LabPage.open, open_in_notebook], ids=["lab", "notebook"])
def test_the_report_of_an_unsaved_notebook_has_its_outputs(
    page: LabPage, opened: Callable[[LabPage, Path], None]
) -> None:
    path = page.lab.write_notebook(f"unsaved-{opened.__name__}.ipynb", CELLS)
    opened(page, path)
    page.run_all()
    said = page.page.locator(".jp-OutputArea-output", has_text="Report of")
    said.wait_for()
    assert "as saved at" not in said.inner_text()
    report = path.with_suffix(".html").read_text(encoding="utf-8")
    assert "six times seven is 42" in report
    outputs = page.page.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea-child")
    outputs.nth(1).wait_for()
    assert outputs.count() == 2, "the link and the path: what saves shows nothing"
