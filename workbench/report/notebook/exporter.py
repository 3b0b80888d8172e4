"""A whole notebook as one offline HTML file: prose, code and outputs; each live panel as the frozen, still interactive
figures of its run; and an appendix with everything about those runs.

``jupyter nbconvert --to dist_report nb.ipynb`` finds ``DistReportExporter`` by its entry point; ``render_notebook`` is
what ``%dist_report --notebook`` and ``workbench report nb.ipynb`` call.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
from markupsafe import Markup
from nbconvert.exporters.exporter import Exporter

from workbench.errors import ReportError, RunDirectoryError
from workbench.plots import plots
from workbench.report import run_data
from workbench.report.compared import comparison
from workbench.report.document import scripts, target_of, templates, write
from workbench.report.figures import Sheet, script_safe
from workbench.report.notebook.cells import Cell, Cells
from workbench.report.notebook.formulas import set_formulas
from workbench.report.notebook.widget_html import STATE_TYPE
from workbench.report.sections import RunSection, section_of
from workbench.rundir import directory as run_directory

_HEADING = re.compile(r"<h([1-6])([^>]*)>(.*?)</h\1>", re.DOTALL)
_MATH = re.compile(r'class="(?:math|math block|[\w -]*mathful)"')


class DistReportExporter(Exporter):
    """``nbconvert --to dist_report``: one HTML file that needs no network, with the runs that the notebook trained."""

    export_from_notebook = "Report with runs (HTML)"
    output_mimetype = "text/html"

    def _file_extension_default(self) -> str:
        return ".html"

    def from_notebook_node(self, nb: Any, resources: Any = None, **options: Any) -> tuple[Any, Any]:
        """The notebook's report as text, and nbconvert's resources."""
        notebook, resources = super().from_notebook_node(nb, resources, **options)
        about = resources.get("metadata", {})
        folder = Path(about.get("path") or ".").absolute()
        return notebook_page(notebook, folder=folder, name=str(about.get("name") or "Notebook")), resources


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the table of contents."""

    level: int
    id: str
    text: str


def render_notebook(
    notebook: str | Path,
    out: str | Path | None = None,
    *,
    pdf: bool = False,
    light: bool = False,
    widgets: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of a notebook as it was last saved (default: beside it, ``.html``) and return its path.

    ``widgets``: widget states of a live kernel, for those that the file does not hold. Raises ``ReportError`` when the
    notebook cannot be read.
    """
    path = Path(notebook).expanduser().absolute()
    try:
        node = nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError, nbformat.ValidationError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ReportError(f"cannot read the notebook {path}: {reason}") from error
    if widgets:
        saved = node.metadata.setdefault("widgets", {}).setdefault(STATE_TYPE, {"state": {}})
        saved["state"] = {**widgets, **saved.get("state", {})}
    html = notebook_page(node, folder=path.parent, name=path.stem, light=light or pdf)
    return write(html, target_of(out, path.with_suffix(".html"), pdf=pdf), pdf=pdf)


def current_notebook() -> Path:
    """The notebook that this kernel runs for, as its server or editor names it. ``ReportError`` when nobody does."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    named = (shell.user_ns.get("__vsc_ipynb_file__") if shell is not None else None) or os.environ.get(
        "JPY_SESSION_NAME"
    )
    if named and str(named).endswith(".ipynb") and Path(named).is_file():
        return Path(named)
    raise ReportError("this kernel does not know its notebook's file: name it, %dist_report --notebook FILE.ipynb")


def saved_at(notebook: Path) -> str:
    """When a notebook was last saved, for people: what came later is not in its report."""
    return datetime.fromtimestamp(notebook.stat().st_mtime).strftime("%H:%M:%S")


def notebook_page(notebook: Any, *, folder: Path, name: str, light: bool = False) -> str:
    """The report of a notebook as HTML text. ``folder``: where its pictures and, if they moved, its runs are."""
    sheet = Sheet(light=light)
    runs = _Runs(folder, sheet)
    cells = Cells(notebook, folder, runs.panel, light=light)
    drawn = cells.draw()
    contents = _number_headings(drawn)
    appendix = runs.appendix()
    page_title = next((entry.text for entry in contents if entry.level == 1), "")
    tex_left = _set_formulas(drawn) if light else 0
    has_math = not light and any(_MATH.search(part) for cell in drawn for part in (cell.source, *cell.outputs))
    parts = tuple(sorted(cells.bokeh_parts | ({"mathjax"} if has_math else set())))
    return (
        templates()
        .get_template("notebook.html")
        .render(
            title=page_title or name,
            needs_title=not page_title,
            name=name,
            cells=drawn,
            contents=contents,
            runs=appendix,
            code_css=_code_css(),
            links=script_safe(cells.links) if cells.links else "",
            light=light,
            tex_left=tex_left,
            **scripts(sheet, parts=parts, always=cells.bokeh),
        )
    )


def _set_formulas(cells: list[Cell]) -> int:
    """Draw the formulas of a report without scripts; how many stayed TeX."""
    left = 0
    for cell in cells:
        if cell.kind == "markdown":
            cell.source, missed = set_formulas(cell.source)
            left += missed
        outputs = [set_formulas(output) for output in cell.outputs]
        cell.outputs = [output for output, _ in outputs]
        left += sum(missed for _, missed in outputs)
    return left


class _Runs:
    """The runs whose panels a notebook shows: each is read once; each panel gets figures of its own."""

    def __init__(self, folder: Path, sheet: Sheet) -> None:
        self._folder = folder
        self._sheet = sheet
        self._known: dict[Path, tuple[int, run_data.RunData]] = {}
        self._panels = 0

    def panel(self, about: Mapping[str, Any]) -> Markup | None:
        """The frozen panel of a run, or of several and their comparison; None when no directory is here any more."""
        paths = [path for name in about.get("runs", []) if (path := self._find(str(name))) is not None]
        if not paths:
            return None
        runs = [self._read(path) for path in paths]
        compared = None
        if len(runs) > 1:
            self._panels += 1
            compared = comparison(runs, self._sheet, prefix=f"panel{self._panels}-")
        panels = Markup("").join(self._frozen(path, one) for path, one in zip(paths, runs, strict=True))
        return Markup(templates().get_template("panels.html").render(panels=panels, comparison=compared))

    def _read(self, path: Path) -> run_data.RunData:
        if path not in self._known:
            self._known[path] = (len(self._known) + 1, run_data.read(path))
        return self._known[path][1]

    def _frozen(self, path: Path, run: run_data.RunData) -> Markup:
        self._panels += 1
        section = section_of(run, self._sheet, plots(), prefix=f"panel{self._panels}-", level=4)
        number, _ = self._known[path]
        return Markup(templates().get_template("panel.html").render(r=section, appendix=f"run{number}-run"))

    def appendix(self) -> list[RunSection]:
        """Everything about the runs but their figures, which stand where the panels were."""
        light = Sheet(light=True)
        return [section_of(run, light, [], prefix=f"run{number}-", level=4) for number, run in self._known.values()]

    def _find(self, named: str) -> Path | None:
        """A run directory: where it was, else beside the notebook, else under the home of runs."""
        if not named:
            return None
        name = Path(named).name
        for place in (Path(named), self._folder / "runs" / name, self._folder / name, run_directory.home() / name):
            if _is_run(place):
                return place.resolve()
        return None


def _is_run(place: Path) -> bool:
    try:
        return place.is_absolute() and place.is_dir() and run_directory.is_run(place)
    except (OSError, RunDirectoryError):
        return False


def _number_headings(cells: list[Cell]) -> list[Entry]:
    """Give every heading of the prose an id of its own, and list them."""
    contents: list[Entry] = []
    used: set[str] = set()

    def number(match: re.Match[str]) -> str:
        level, text = int(match[1]), Markup(match[3]).striptags()
        slug = base = re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:60] or "section"
        again = 1
        while f"s-{slug}" in used:
            again += 1
            slug = f"{base}-{again}"
        used.add(f"s-{slug}")
        contents.append(Entry(level=level, id=f"s-{slug}", text=text))
        return f'<h{level} id="s-{slug}">{match[3]}</h{level}>'

    for cell in cells:
        if cell.kind == "markdown":
            cell.source = Markup(_HEADING.sub(number, cell.source))
    return contents


def _code_css() -> str:
    """Colours of code, light and dark."""
    from pygments.formatters import HtmlFormatter

    light = HtmlFormatter(style="default").get_style_defs(".code")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".code")
    keep = [line for line in light.splitlines() if line.startswith(".code .")]
    other = [line for line in dark.splitlines() if line.startswith(".code .")]
    return "\n".join([*keep, "@media screen and (prefers-color-scheme: dark) {", *other, "}"])
