"""The report of a run: its content, that it loads nothing from the network, and that hostile text is escaped."""

import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup

from tests.fake_run import layer_names, make_fake_run
from workbench.errors import RunDirectoryError
from workbench.plots import confusion
from workbench.report import render
from workbench.report.figures import to_script_json
from workbench.rundir.log import RankLogWriter

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}</pre>\u2028é$$x$$"


class Page(HTMLParser):
    """The elements of a page, the addresses that they load, the text outside scripts, and the table headers."""

    LOADS = {"src", "href", "data", "poster", "action", "srcset"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.headers: list[str] = []
        self.cells: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.text = " ".join(self.cells)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        for name, value in attrs:
            if name in self.LOADS and value:
                self.loads.append(value)
            if name == "id" and value:
                self.ids.append(value)
            if tag == "th" and name == "scope" and value:
                self.headers.append(value)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self._open[-1:]:
            self.scripts.append(data)
        elif "style" not in self._open[-1:]:
            self.cells.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report. All text that comes from a user or a machine is hostile."""
    layers = [HOSTILE, "x" * 10_000, *layer_names(2)]
    made = make_fake_run(tmp_path_factory.mktemp("whole") / "run", ranks=2, steps=200, names=layers)
    spec = made / "spec.toml"
    spec.write_text(spec.read_text().replace('torch = "2.13.0"', f"torch = {json.dumps(HOSTILE)}"))
    (made / "cell.py").write_text(HOSTILE)
    with RankLogWriter(made, -1) as log:
        log.event("sample", "text", HOSTILE + "y" * 20_000)
        log.event("control", HOSTILE, {"a": HOSTILE}, old_value=[HOSTILE])
        log.event("validation", HOSTILE, 1.0)
        log.event("validation", "loss", float("nan"))
        log.event("rank", "died", {"rank": 0, "reason": HOSTILE})
    assert render(made) == made / "report.html"
    return made


def text_page(run: Path) -> Page:
    """The report of a run without figures, which are slow to draw."""
    return Page(render(run, run.parent / "text.html", figures=[], light=True).read_text())


def test_size_of_a_small_run(run: Path) -> None:
    assert (run / "report.html").stat().st_size < 3e6


def test_a_report_loads_nothing_from_the_network(run: Path) -> None:
    page = Page((run / "report.html").read_text())
    assert page.loads and all(address.startswith(("#", "data:")) for address in page.loads)


def test_a_report_has_landmarks_headers_and_every_figure(run: Path) -> None:
    from workbench.plots import plots

    page = Page((run / "report.html").read_text())
    assert {"header", "nav", "main", "footer", "h1"} <= set(page.tags)
    assert {"col", "row"} == set(page.headers)
    assert len(page.ids) == len(set(page.ids))
    shown = {plot.NAME for plot in plots()} - {"busy"}  # which needs more than 8 ranks
    assert {f"figure-{name}" for name in shown} <= set(page.ids)
    assert "The training loss fell from" in page.text and "workbench train" in page.text


def test_hostile_text_is_escaped(run: Path) -> None:
    html = (run / "report.html").read_text()
    page = Page(html)
    assert "<script>alert" not in html and "49" not in page.text.split()
    assert page.text.count("<script>alert(1)</script>") >= 5
    assert html.count("y" * 100) and len(html) < 3e6


def test_a_hostile_run_name_is_escaped(tmp_path: Path, two_figures: None) -> None:
    name = HOSTILE.replace("/", "") + "z" * 100
    run = make_fake_run(tmp_path / name, steps=10)
    (run / "spec.toml").write_text(f"recipe = {json.dumps(HOSTILE)}\nsurprise = 1")  # so the directory's name stands
    for html in (render(run, light=True).read_text(), render([run, run], tmp_path / "b.html", light=True).read_text()):
        page = Page(html)
        assert page.text.count(name) >= 2 and "script" not in page.tags and "49" not in page.text.split()


def test_script_json_cannot_end_the_script_element() -> None:
    text = to_script_json({"a": "</script><!--\u2028"})
    assert "<" not in text and json.loads(text) == {"a": "</script><!--\u2028"}


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_a_run_that_did_not_finish(tmp_path: Path, state: str) -> None:
    page = text_page(make_fake_run(tmp_path / "run", steps=50, state=state))
    expected = {"running": "did not report an end", "stopped": "was stopped", "failed": "RuntimeError: loss is NaN"}
    assert expected[state] in page.text


def test_a_run_without_logs(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=5)
    for log in run.glob("rank-*/*"):
        log.unlink()
    page = Page(render(run, tmp_path / "out" / "r.html").read_text())
    assert "There is no log of ranks 0-1. The run has 2 ranks." in page.text


def test_a_confusion_matrix_is_a_figure_and_a_folded_table(tmp_path: Path) -> None:
    run = make_fake_run(tmp_path / "run", steps=5)
    with RankLogWriter(run, -1) as log:
        log.event("validation", "accuracy", 0.75, step=5)
        log.event("validation", "confusion_matrix", [[3, 1], [1, 3]], step=5)
    page = BeautifulSoup(render(run, figures=[confusion], light=True).read_text(), "html.parser")
    matrix = page.find("table", class_="matrix")
    assert [cell.text for cell in matrix.find_all("td")] == ["3", "1", "1", "3"] and "75.0" in page.text
    folded = matrix.find_parent("details")
    assert not folded.has_attr("open") and "as a table" in folded.summary.text
    assert page.find(id="samples").find("svg", class_="still")


def test_a_figure_that_fails_does_not_affect_the_others(run: Path) -> None:
    def columns(*_: object) -> None:
        raise ValueError("no <b>luck</b>")

    broken = SimpleNamespace(NAME="broken", TITLE="Broken", columns=columns, figure=None)
    page = Page(render(run, run.parent / "broken.html", figures=[broken]).read_text())  # type: ignore[list-item]
    assert "This figure could not be drawn: ValueError: no <b>luck</b>" in page.text


def test_an_unwritable_path_raises(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot write the report"):
        render(run, tmp_path / "file" / "report.html", figures=[], light=True)
