"""Reports in Chromium without a network: figures, errors, linked zoom, a narrow screen, print, and light reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.browser.lab import find_browser
from tests.fake_run import make_fake_run
from workbench.plots import plots
from workbench.report import render

pytestmark = pytest.mark.browser
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HOSTILE = "<img src=http://example.invalid/x onerror=alert(1)>$$x$$"


class Reader:
    """A page without a network that records its requests, console errors and exceptions."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, report: Path, *, width: int = 1280, scheme: str = "light") -> int:
        """Open a report, wait until its figures are drawn, and return their number."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme)
        self.page.goto(report.as_uri())
        self.page.wait_for_selector("html[data-drawn]")
        self.page.wait_for_timeout(300)
        return int(self.page.evaluate("document.documentElement.dataset.drawn"))

    def assert_no_errors_or_requests(self) -> None:
        assert self.errors == []
        assert [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.fixture
def reader(browser: Any) -> Iterator[Reader]:
    browser.set_offline(True)
    page = browser.new_page()
    yield Reader(page)
    page.close()
    browser.set_offline(False)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_every_figure_is_drawn_without_a_network(reader: Reader, tmp_path: Path, scheme: str, width: int) -> None:
    report = render(make_fake_run(tmp_path / "run", ranks=2, steps=200, names=[HOSTILE, "b", "c"]))
    shown = report.read_text().count('class="plot"')
    assert reader.open(report, width=width, scheme=scheme) == shown >= len(plots()) // 2
    assert reader.page.locator(".plot canvas").count() >= shown
    assert reader.page.locator(".picture:visible").count() == 0  # the interactive figures replace them
    assert reader.page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1280:  # of seven narrow figures the last has the row for itself
        last, first = (reader.page.locator(f"#figure-{name}").bounding_box() for name in ("logged_third", "loss"))
        assert last["width"] > 1.9 * first["width"]
    reader.assert_no_errors_or_requests()


def test_zooming_one_figure_zooms_the_linked_figures(reader: Reader, tmp_path: Path) -> None:
    reader.open(render(make_fake_run(tmp_path / "run", steps=200)))
    ranges = """() => Bokeh.documents.flatMap((document) => document.roots()).map((figure) =>
        [String(figure.below[0].axis_label).startsWith("step"), figure.x_range.end])"""
    before = reader.page.evaluate(ranges)
    loss, mouse = reader.page.locator("#figure-loss"), reader.page.mouse
    loss.scroll_into_view_if_needed()
    box = loss.bounding_box()
    height = box["y"] + 0.6 * box["height"]
    mouse.move(box["x"] + 0.4 * box["width"], height)
    reader.page.wait_for_selector(".bk-Tooltip:visible")
    mouse.down()
    mouse.move(box["x"] + 0.6 * box["width"], height, steps=8)
    mouse.up()
    reader.page.wait_for_function(f"end => ({ranges})()[0][1] !== end", arg=before[0][1])
    after = reader.page.evaluate(ranges)
    brushed = {end for over_steps, end in after if over_steps}
    assert len(brushed) == 1 and 80 < brushed.pop() < 150 and sum(over_steps for over_steps, _ in after) > 5
    assert [one for one in after if not one[0]] == [
        one for one in before if not one[0]
    ]  # figures over time keep their range
    reader.assert_no_errors_or_requests()


def test_print_and_light_reports_show_static_pictures(reader: Reader, browser: Any, tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=100)
    report = render(run)
    shown = reader.open(report)
    reader.page.emulate_media(media="print")
    assert (
        reader.page.locator(".picture svg:visible").count() == shown
        and reader.page.locator(".plot:visible").count() == 0
    )
    reader.page.emulate_media(media="screen")
    light = render(run, tmp_path / "light.html", light=True)
    reader.page.goto(light.as_uri())
    assert reader.page.locator(".picture svg").count() == shown
    assert reader.page.get_by_role("img", name="loss over step").count() == 1
    assert find_browser() is not None
    assert render(run, tmp_path / "paper", pdf=True).read_bytes().startswith(b"%PDF-")


def test_a_notebook_of_everything(reader: Reader, tmp_path: Path) -> None:
    from workbench.report.notebook.exporter import render_notebook

    run = make_fake_run(tmp_path / "runs" / "2026-05-01-120000-first", steps=100)
    report = render_notebook(everything(tmp_path, run))
    shown = report.read_text().count('class="plot"')
    assert reader.open(report) == shown >= 5
    page = reader.page
    assert page.locator(".math svg").count() == 5 and page.locator(".math:not(.done)").count() == 0
    assert (
        page.locator(".bk-Figure").count() >= shown + 1
    )  # the figures of the panel, and the Bokeh output of the notebook
    assert page.get_by_role("table").filter(has_text="a cell").is_visible()
    page.locator(".w-tabs label", has_text="second").click()
    assert page.locator(".w-page:visible").inner_text().strip() == "two"
    page.locator("[data-model=slider] input").fill("8")
    assert page.locator("[data-model=label]").inner_text().strip() == "8"
    assert page.locator("[data-model=slider] output").inner_text() == "8"
    page.locator("[data-model=plan] select").select_option("zero1")
    assert page.locator("[data-model=place] input").input_value() == "1"
    assert page.locator("[data-model=place] output").inner_text() == "b"
    page.get_by_role("button", name="on").click()
    assert not page.get_by_role("checkbox").is_checked()
    page.get_by_role("button", name="Hide all code").click()
    assert page.locator("pre.code:visible").count() == 0
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    reader.assert_no_errors_or_requests()


def everything(folder: Path, run: Path) -> Path:
    """A notebook with each kind of output, as a kernel saves it."""
    from bokeh.embed.notebook import notebook_content
    from bokeh.plotting import figure

    drawn = figure(width=300, height=200)
    drawn.line([1, 2, 3], [3, 1, 2])
    script, div, _ = notebook_content(drawn)
    v4 = nbformat.v4
    shown = [
        {"text/html": f"{div}<img src='https://example.invalid/a.png'>"},
        {"application/javascript": script, "application/vnd.bokehjs_exec.v0+json": ""},
        {"text/html": "<table><tr><td>a cell</td></tr></table>"},
        {"text/latex": "$\\displaystyle \\frac{a}{b}$ and \\begin{equation}E = mc^2\\end{equation}"},
        {"text/markdown": "with $y_1$"},
        {"application/vnd.jupyter.widget-view+json": {"model_id": "tab"}, "text/plain": "Tab()"},
        {"application/vnd.jupyter.widget-view+json": {"model_id": "box"}, "text/plain": "HBox()"},
        {"image/png": PIXEL},
    ]
    outputs = [v4.new_output("display_data", data=data) for data in shown]
    outputs.append(v4.new_output("stream", text=HOSTILE))
    panel = v4.new_output(
        "display_data", data={"text/plain": "first"}, metadata={"dist_workbench": {"runs": [str(run)]}}
    )
    cells = [
        v4.new_markdown_cell("# All\n\n$$\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}$$\n\n## Part with $x$"),
        v4.new_code_cell("%dist_train", outputs=[panel]),
        v4.new_code_cell("everything", outputs=outputs),
    ]
    states = {
        "tab": {
            "model_name": "TabModel",
            "state": {"children": ["IPY_MODEL_a", "IPY_MODEL_b"], "titles": ["first", "second"]},
        },
        "box": {
            "model_name": "HBoxModel",
            "state": {
                "children": [f"IPY_MODEL_{name}" for name in ("slider", "label", "plan", "place", "on", "check")]
            },
        },
        "plan": {
            "model_name": "DropdownModel",
            "state": {"_options_labels": ["ddp", "zero1"], "index": 0, "description": "plan"},
        },
        "place": {"model_name": "SelectionSliderModel", "state": {"_options_labels": ["a", "b"], "index": 0}},
        "on": {"model_name": "ToggleButtonModel", "state": {"value": True, "description": "on"}},
        "check": {"model_name": "CheckboxModel", "state": {"value": True}},
        "choices": {
            "model_name": "LinkModel",
            "state": {"source": ["IPY_MODEL_plan", "index"], "target": ["IPY_MODEL_place", "index"]},
        },
        "switches": {
            "model_name": "LinkModel",
            "state": {"source": ["IPY_MODEL_on", "value"], "target": ["IPY_MODEL_check", "value"]},
        },
        "slider": {"model_name": "IntSliderModel", "state": {"value": 2, "max": 10}},
        "label": {"model_name": "LabelModel", "state": {"value": "2"}},
        "link": {
            "model_name": "DirectionalLinkModel",
            "state": {"source": ["IPY_MODEL_slider", "value"], "target": ["IPY_MODEL_label", "value"]},
        },
        "a": {"model_name": "LabelModel", "state": {"value": "one"}},
        "b": {"model_name": "LabelModel", "state": {"value": "two"}},
    }
    metadata = {"widgets": {"application/vnd.jupyter.widget-state+json": {"state": states}}}
    nbformat.write(v4.new_notebook(cells=cells, metadata=metadata), folder / "all.ipynb")
    return folder / "all.ipynb"


CONTENTS = "nav.contents"


@pytest.mark.parametrize("width", [1280, 900])
def test_the_contents_stay_in_view_and_open_what_is_folded(reader: Reader, tmp_path: Path, width: int) -> None:
    runs = [make_fake_run(tmp_path / name, steps=60) for name in ("a", "b")]
    reader.open(render(runs, tmp_path / "two.html"), width=width)
    page = reader.page
    assert page.evaluate("document.documentElement.scrollHeight") < 6000
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    main = page.locator("main").bounding_box()
    assert main["x"] + main["width"] == width and main["x"] < 0.3 * width
    page.locator(f"{CONTENTS} a[href='#run2-gradients']").click()
    section = page.locator("#run2-gradients")
    section.wait_for(state="visible")
    assert page.locator("#run2-figure-gradients canvas").count()
    assert section.locator(".bk-Figure").first.bounding_box()["width"] > 0.5 * width
    heading, contents = page.locator("#run2-h-gradients").bounding_box(), page.locator(CONTENTS).bounding_box()
    assert 0 <= heading["y"] < 300 and contents["y"] >= 0 and contents["x"] + contents["width"] <= main["x"]
    reader.assert_no_errors_or_requests()


def test_print_unfolds_everything_and_leaves_out_the_contents(reader: Reader, tmp_path: Path) -> None:
    reader.open(render(make_fake_run(tmp_path / "run", steps=60)))
    page = reader.page
    assert page.locator("#environment").is_hidden()
    page.emulate_media(media="print")
    assert page.locator("#environment").is_visible() and page.locator(CONTENTS).is_hidden()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("main details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert page.locator("#environment").is_hidden()


def test_a_light_report_opens_what_a_link_points_to_without_scripts(reader: Reader, tmp_path: Path) -> None:
    report = render(make_fake_run(tmp_path / "run", steps=20), light=True)
    reader.page.goto(f"{report.as_uri()}#events")
    assert reader.page.locator("#events").is_visible() and reader.page.locator("#environment").is_hidden()
