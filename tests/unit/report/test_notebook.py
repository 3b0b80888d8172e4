"""The report of a notebook: its content, the figures of its panels, and that it loads nothing from the network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from bs4 import BeautifulSoup
from traitlets.config import Config

from tests.fake_run import make_fake_run
from workbench.errors import ReportError
from workbench.report.notebook import clean

HOSTILE = "<script>alert(1)</script>\"'&"
V4 = nbformat.v4


def written(folder: Path, *cells: Any, **metadata: Any) -> Path:
    book = V4.new_notebook(cells=list(cells), metadata=metadata)
    nbformat.write(book, folder / "book.ipynb")
    return folder / "book.ipynb"


def code(source: str, *outputs: Any, **metadata: Any) -> Any:
    return V4.new_code_cell(source, outputs=list(outputs), execution_count=3, metadata=metadata)


def shown(data: dict[str, Any], **metadata: Any) -> Any:
    return V4.new_output("display_data", data=data, metadata=metadata)


def page_of(notebook: Path, **options: Any) -> BeautifulSoup:
    from workbench.report.notebook.exporter import render_notebook

    return BeautifulSoup(render_notebook(notebook, **options).read_text(), "html.parser")


def loads(page: BeautifulSoup) -> list[str]:
    """The addresses that the page loads."""
    return [e[name] for name in ("src", "srcset", "poster", "data") for e in page.find_all(attrs={name: True})]


def test_prose_code_and_contents(tmp_path: Path) -> None:
    page = page_of(
        written(
            tmp_path,
            V4.new_markdown_cell("# A title\n\nText with $x^2$ and `code`.\n\n## Part\n\n## Part"),
            code("a = 1  # note"),
            code("hidden = 1", tags=["hide-input"]),
        )
    )
    assert page.title.text == "A title" and [h.text for h in page.find_all("h1")] == ["A title"]
    links = [a["href"] for a in page.find("nav").find_all("a")]
    assert links == ["#s-a-title", "#s-part", "#s-part-2"] and all(page.find(id=link[1:]) for link in links)
    assert page.find(class_="math").text == "x^2"
    first, second = page.find_all("details", class_="source")
    assert first.has_attr("open") and not second.has_attr("open")
    assert first.code.text.strip() == "a = 1  # note" and first.find("span", class_="c1").text == "# note"
    assert page.find("script", id="packed-library") is not None  # the page needs MathJax for its formula
    assert page_of(written(tmp_path, code("1"))).find("script", id="packed-library") is None


def test_standard_outputs(tmp_path: Path) -> None:
    page = page_of(
        written(
            tmp_path,
            code(
                "x",
                V4.new_output("stream", name="stdout", text=f"\x1b[31mred\x1b[0m {HOSTILE}"),
                V4.new_output("stream", name="stderr", text="warned"),
                V4.new_output("error", ename="E", evalue=HOSTILE, traceback=[f"Traceback {HOSTILE}"]),
                shown({"text/html": "<table><tr><td>cell</td></tr></table>", "text/plain": "poorer form"}),
                shown({"text/markdown": "**bold**"}),
                shown({"text/latex": "$\\alpha$"}),
                shown({"image/png": "iVBORw==\n", "text/plain": "<Figure>"}, **{"image/png": {"width": 320}}),
                shown({"image/svg+xml": "<svg><circle r='3'/></svg>"}),
                shown({"application/json": {"a": [1]}}),
                shown({"text/plain": HOSTILE}),
            ),
        )
    )
    text = page.get_text()
    assert page.find("span", class_="ansi-red-fg").text == "red" and "alert(1)" in text
    assert not [s for s in page.find_all("script") if "alert(1)" in s.text]
    assert page.find("td").text == "cell" and page.strong.text == "bold" and "poorer form" not in text
    assert page.find(class_="mathful").text == "$\\alpha$" and page.find("pre", class_="stderr").text == "warned"
    assert page.find("img")["src"] == "data:image/png;base64,iVBORw==" and "320px" in page.find("img")["style"]
    assert page.find("circle") and '"a": [' in text
    assert page.find("pre", class_="error").text == f"Traceback {HOSTILE}"


def test_a_panel_becomes_its_figures_and_its_run_an_appendix(tmp_path: Path, two_figures: None) -> None:
    run = make_fake_run(tmp_path / "runs" / "2026-05-01-120000-first", steps=40)
    picture = shown({"image/png": "iVBORw==", "text/plain": "first: finished"}, dist_workbench={"runs": [str(run)]})
    live = shown({"text/plain": "Live panel of x", "application/vnd.jupyter.widget-view+json": {"model_id": "gone"}})
    live.metadata["dist_workbench"] = {"runs": [str(run)]}
    other = make_fake_run(tmp_path / "runs" / "2026-05-01-130000-second", steps=20)
    both = shown({"image/png": "iVBORw=="}, dist_workbench={"runs": [str(run), str(other)]})
    notebook = written(tmp_path, code("%dist_train", picture), code("%dist_watch", live), code("%dist_watch", both))
    page = page_of(notebook)
    *panels, compared, _, other = page.find_all("div", class_="panel")
    assert compared.find("div", id="panel3-compared-loss") and other["aria-label"] == "Panel of run fake"
    assert len(panels) == 2 and not page.find("img", class_="output-picture")
    assert [bool(p.find("div", id=f"panel{n}-figure-loss")) for n, p in enumerate(panels, 1)] == [True, True]
    for number, panel in enumerate(panels, 1):
        drawn = [figure.find("div", id=True)["id"] for figure in panel.find_all("figure") if figure.svg]
        timelines = [name for name in drawn if name.startswith(f"panel{number}-timeline-")]
        assert set(drawn) - set(timelines) == {f"panel{number}-figure-loss", f"panel{number}-figure-throughput"}
        assert len(timelines) >= 2 and len(panel.find_all("svg", class_="still")) == len(drawn)
    appendix = page.find(id="runs")
    assert appendix.h2.text == "Appendix: the runs" and len(appendix.find_all("h3", class_="run")) == 2
    assert "workbench train" in appendix.get_text() and page.find(id="run1-environment")
    ids = [e["id"] for e in page.find_all(id=True)]
    assert len(ids) == len(set(ids)) and all(a.startswith(("data:", "#")) for a in loads(page))


def test_a_moved_run_is_found_and_a_deleted_run_keeps_its_saved_picture(tmp_path: Path, two_figures: None) -> None:
    run = make_fake_run(tmp_path / "elsewhere" / "2026-05-01-120000-first", steps=10)
    picture = shown({"image/png": "iVBORw==", "text/plain": "first"}, dist_workbench={"runs": [str(run)]})
    notebook = written(tmp_path, code("x", picture))
    (tmp_path / "runs").mkdir()
    shutil.move(run, tmp_path / "runs")
    assert page_of(notebook).find("div", class_="panel")
    shutil.rmtree(tmp_path / "runs")
    page = page_of(notebook)
    assert page.find("img", class_="output-picture") and not page.find(id="runs")


def test_a_panel_publishes_its_run_as_metadata(
    tmp_path: Path, two_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The panel publishes, live and at the end, the metadata by which the report finds its run."""
    from widgets.panel.panel import Panel
    from workbench.report.notebook.cells import PANEL_KEY

    published: list[Any] = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda data, metadata, **_: published.append(metadata))
    run = make_fake_run(tmp_path / "run", steps=5)
    panel = Panel(run)
    panel.show()
    assert panel.finish(20)
    panel.close()
    assert [metadata[PANEL_KEY] for metadata in published] == [{"runs": [str(run)]}] * 2


def test_bokeh_outputs_use_the_embedded_bokehjs(tmp_path: Path) -> None:
    script = '{"name":"DataTable"} root.Bokeh.embed'
    load = shown(
        {"application/javascript": "load('https://cdn.bokeh.org')", "application/vnd.bokehjs_load.v0+json": ""}
    )
    execute = shown({"application/javascript": script, "application/vnd.bokehjs_exec.v0+json": ""})
    page = page_of(written(tmp_path, code("show(p)", load, execute)))
    assert len(page.find_all("script", class_="bokeh-output")) == 1
    assert "cdn.bokeh.org" not in str(page)


def test_remote_content_is_replaced_by_notes(tmp_path: Path) -> None:
    (tmp_path / "local.png").write_bytes(b"\x89PNG")
    source = (
        '<script src="https://cdn.example/x.js"></script><link rel="stylesheet" href="//cdn.example/x.css">'
        '<iframe src="https://example.invalid/video"></iframe><img src="http://example.invalid/a.png">'
        '<img src="local.png"><img src="../secret.png">'
        "<style>@import url(http://x/y.css); p { background: url(http://x/z) }</style>"
        "<p style=\"background: url('https://x/y')\">kept</p><script>1 < 2</script>"
    )
    page = BeautifulSoup(clean.clean_html(source, folder=tmp_path), "html.parser")
    assert [a for a in loads(page) if not a.startswith("data:")] == [] and not page.find(["iframe", "link"])
    assert len(page.find_all("img")) == 1 and page.p.text == "kept" and "url(" not in str(page)
    assert len(page.find_all(class_="gone")) == 5 and page.find_all("script")[0].text == "1 < 2"


def test_attachments_are_embedded_and_missing_ones_are_named(tmp_path: Path) -> None:
    cell = V4.new_markdown_cell("![ours](attachment:a.png) ![lost](attachment:b.png)")
    cell["attachments"] = {"a.png": {"image/png": "iVBORw=="}}
    page = page_of(written(tmp_path, cell))
    assert page.find("img")["src"] == "data:image/png;base64,iVBORw==" and "picture lost is missing" in page.get_text()


def test_attachments_of_html_tags_are_embedded(tmp_path: Path) -> None:
    cell = V4.new_markdown_cell(
        'Before <img src="attachment:my%20a.png" width="40">\n\n<div><img src="attachment:lost.png" alt="ours"></div>'
    )
    cell["attachments"] = {"my a.png": {"image/png": "iVBORw=="}}
    page = page_of(written(tmp_path, cell))
    assert [(img["src"], img["width"]) for img in page.find_all("img")] == [("data:image/png;base64,iVBORw==", "40")]
    assert "picture ours is missing" in page.get_text()


def test_control_characters_that_html_forbids_are_replaced(tmp_path: Path) -> None:
    from workbench.report.notebook.exporter import render_notebook

    forbidden = "".join(map(chr, [0, 1, 8, 0x0B, 0x0E, 0x1F, 0x7F, 0x85, 0x9F, 0xFDD0, 0xFFFE]))
    stream = V4.new_output("stream", name="stdout", text=f"a\0b\tc\n{forbidden}d\N{GREEK SMALL LETTER ALPHA}")
    html = render_notebook(
        written(tmp_path, V4.new_markdown_cell("x\0y"), code("'\1'", stream, shown({"text/plain": "p\0q"})))
    ).read_text()
    assert not set(html) & set(forbidden)
    replaced = "\N{REPLACEMENT CHARACTER}"
    assert f"a{replaced}b\tc\n{replaced * len(forbidden)}d\N{GREEK SMALL LETTER ALPHA}" in html
    assert f"p{replaced}q" in html


def test_markdown_is_sanitised_as_jupyterlab_does(tmp_path: Path) -> None:
    (tmp_path / "local.png").write_bytes(b"\x89PNG")
    source = (
        "# Title\n\n<script>document.title = 'ran'</script>\n\n"
        "<p onclick='f()' style='color: red' class='c'>kept</p>\n\n"
        '<img src="local.png" onerror="f()" width="40">\n\n<a href="javascript:f()">one</a> '
        '<a href="data:text/html,x">two</a> <a href="#title">three</a> inline <script>f()</script>\n\n'
        "<svg onload='f()'><script>f()</script></svg>\n\n<form action='https://x.invalid'><input value='3'></form>\n\n"
        "| a | b |\n|:-:|--:|\n| 1 | $x<y$ |\n\n- [x] done\n\n```python\nif a < b: '<script>'\n```\n\n"
        "$$\n\\alpha & b < c\n$$\n\n<details open><summary>more</summary>text</details>"
    )
    html = clean.markdown_to_html(source, folder=tmp_path)
    page = BeautifulSoup(html, "html.parser")
    assert not page.find(["script", "svg", "style"]) and "f()" not in html and "ran" not in html
    assert page.find("p", class_="c")["style"] == "color: red" and page.find("img")["src"].startswith("data:image/png")
    assert [link.get("href") for link in page.find_all("a")] == [None, None, "#title"]
    assert not page.form.has_attr("action") and page.form.input["value"] == "3"
    assert [e.text for e in page.find_all(class_="math")] == ["x<y", "\n\\alpha & b < c\n"]
    assert page.td["style"].replace(" ", "") == "text-align:center" and page.find(
        "input", type="checkbox", checked=True
    )
    assert "'<script>'" in page.find("pre").text and page.details.summary.text == "more"
    assert page_of(written(tmp_path, code("x", shown({"text/html": "<script>kept()</script>"})))).find(
        "script", string="kept()"
    )


def test_a_light_notebook_report_has_no_scripts(tmp_path: Path, two_figures: None) -> None:
    from bokeh.embed.notebook import notebook_content
    from bokeh.plotting import figure

    run = make_fake_run(tmp_path / "runs" / "2026-05-01-120000-first", steps=20)
    shown_run = shown({"image/png": "iVBORw==", "text/plain": "first"}, dist_workbench={"runs": [str(run)]})
    drawn = figure(width=300, height=200, title="own figure")
    drawn.line([1, 2, 3], [3, 1, 2])
    drawn.annulus([1], [1], inner_radius=0.1, outer_radius=0.2)
    script, _, _ = notebook_content(drawn)
    bokeh, table = (
        shown({"application/javascript": source, "application/vnd.bokehjs_exec.v0+json": ""})
        for source in (script, 'docs_json = {"a": {"roots": 1}}')
    )
    prose = V4.new_markdown_cell("$x$ $$\\unknown$$ $$\\unknown$$")
    page = page_of(written(tmp_path, prose, code("x", shown_run, bokeh, table)), light=True)
    assert not page.find("script") and page.find("svg", class_="still")
    assert (
        page.find("p", role="note").text
        == "2 formulas are shown as TeX because matplotlib cannot draw them. The interactive report draws them."
    )
    assert [place["aria-label"] for place in page.find_all(role="math")] == ["x"]
    own = page.find("figure", class_="bokeh-still")
    assert own.figcaption.text == "own figure" and own.svg.find_all(["path", "polyline"])
    assert own.find("p", class_="empty").text == "The static picture does not show: Annulus."
    assert "This Bokeh output has no static picture." in page.find(class_="gone").text


def test_an_unreadable_notebook_raises(tmp_path: Path) -> None:
    from workbench.report.notebook.exporter import render_notebook

    (tmp_path / "a.ipynb").write_text("{")
    for name in ("a.ipynb", "none.ipynb"):
        with pytest.raises(ReportError, match="cannot read the notebook"):
            render_notebook(tmp_path / name)


def test_the_notebook_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.report.notebook.exporter import current_notebook

    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    with pytest.raises(ReportError, match="--notebook FILE"):
        current_notebook()
    notebook = written(tmp_path, code("1"))
    monkeypatch.setenv("JPY_SESSION_NAME", str(notebook))
    assert current_notebook() == notebook


def test_nbconvert_finds_the_exporter(tmp_path: Path) -> None:
    from nbconvert.exporters import get_exporter

    notebook = written(tmp_path, V4.new_markdown_cell("# From nbconvert"), code("secret = 1", tags=["gone"]))
    options = {"enabled": True, "remove_cell_tags": {"gone"}}
    exporter = get_exporter("dist_report")(config=Config({"TagRemovePreprocessor": options}))
    html, _ = exporter.from_filename(str(notebook))
    page = BeautifulSoup(html, "html.parser")
    assert (
        exporter.file_extension == ".html" and page.title.text == "From nbconvert" and "secret" not in page.get_text()
    )


def test_the_magic_and_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    from magics.report import ReportMagics
    from workbench.cli.main import main

    notebook = written(tmp_path, V4.new_markdown_cell("# Ours"))
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    magic = ReportMagics(shell)
    assert magic.dist_report(f"--notebook {notebook} -o {tmp_path / 'a.html'}") == tmp_path / "a.html"
    assert "as saved at" in capsys.readouterr().out
    assert main(["report", str(notebook)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "book.html")
    assert main(["report", str(notebook), "other"]) == 2


def test_widget_states_of_a_live_kernel(tmp_path: Path) -> None:
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "m"}, "text/plain": f"IntSlider({HOSTILE})"}
    notebook = written(tmp_path, code("slider", shown(view)))
    assert "does not contain the state of this widget: IntSlider(<script>" in page_of(notebook).get_text()
    state = json.loads('{"m": {"model_name": "IntSliderModel", "state": {"value": 7, "max": 10}}}')
    assert page_of(notebook, widgets=state).find("output").text == "7"
