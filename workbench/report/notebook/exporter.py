"""Writes the report of a notebook: one HTML file with its text, code and outputs, which needs no network.

Each live panel becomes the interactive figures of its run, and an appendix contains everything else about these runs.

``%dist_report --notebook`` and ``workbench report nb.ipynb`` call ``render_notebook``; ``jupyter nbconvert --to
dist_report nb.ipynb`` finds ``DistReportExporter`` by its entry point.
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
from workbench.report.compared import compare_runs
from workbench.report.document import frame_variables, render_template, report_path, templates, write_report
from workbench.report.figures import FigureBundle, to_script_json
from workbench.report.notebook.cells import Cell, CellConverter
from workbench.report.notebook.formulas import draw_formulas
from workbench.report.notebook.widget_html import STATE_TYPE
from workbench.report.pdf import find_browser
from workbench.report.sections import RunSection, make_section
from workbench.rundir import directory as run_directory

_HEADING = re.compile(r"<h([1-6])([^>]*)>(.*?)</h\1>", re.DOTALL)
_MATH = re.compile(r'class="(?:math|math block|[\w -]*mathful)"')


class DistReportExporter(Exporter):
    """``nbconvert --to dist_report``: an HTML file that needs no network, with the runs that the notebook trained."""

    export_from_notebook = "Report with runs (HTML)"
    output_mimetype = "text/html"

    def _file_extension_default(self) -> str:
        return ".html"

    def from_notebook_node(self, nb: Any, resources: Any = None, **options: Any) -> tuple[Any, Any]:
        """The HTML text of the report, and nbconvert's resources."""
        notebook, resources = super().from_notebook_node(nb, resources, **options)
        metadata = resources.get("metadata", {})
        folder = Path(metadata.get("path") or ".").absolute()
        return render_html(notebook, folder=folder, name=str(metadata.get("name") or "Notebook")), resources


@dataclass(frozen=True, kw_only=True)
class ContentsEntry:
    """An entry of the table of contents: a heading of the notebook, its level (1 to 6) and the id of its element."""

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
    """Write the report of a notebook file as one HTML file that needs no network, and return its path.

    ``out``: the file to write, or a directory for it (default: beside the notebook, with the suffix ``.html``).
    ``pdf``: write a PDF instead. ``light``: static pictures and no scripts. ``widgets``: widget states of a live
    kernel (model id -> state), for widgets whose state is not saved in the notebook.

    Raises ``ReportError`` if the notebook cannot be read or the PDF cannot be printed, and ``RunDirectoryError`` if
    ``out`` cannot be written.
    """
    path = Path(notebook).expanduser().absolute()
    try:
        node = nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError, nbformat.ValidationError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ReportError(
            f"cannot read the notebook {path}: {reason}; check the path, or save the notebook again"
        ) from error
    if widgets:
        saved = node.metadata.setdefault("widgets", {}).setdefault(STATE_TYPE, {"state": {}})
        saved["state"] = {**widgets, **saved.get("state", {})}
    if pdf:
        find_browser()  # before all figures are drawn
    html = render_html(node, folder=path.parent, name=path.stem, light=light or pdf, unfolded=pdf)
    return write_report(html, report_path(out, path.with_suffix(".html"), pdf=pdf), pdf=pdf)


def current_notebook() -> Path:
    """The notebook file of this kernel, as Jupyter or VS Code names it. Raises ``ReportError`` if neither does."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    name = (shell.user_ns.get("__vsc_ipynb_file__") if shell is not None else None) or os.environ.get(
        "JPY_SESSION_NAME"
    )
    if name and str(name).endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    raise ReportError(
        "the file of this notebook is not known to its kernel: pass it, as in %dist_report --notebook FILE.ipynb"
    )


def saved_at(notebook: Path) -> str:
    """The local time at which a notebook was last saved, as ``HH:MM:SS``."""
    return datetime.fromtimestamp(notebook.stat().st_mtime).strftime("%H:%M:%S")


def render_html(notebook: Any, *, folder: Path, name: str, light: bool = False, unfolded: bool = False) -> str:
    """The report of a notebook as HTML text.

    ``folder``: the notebook's folder, for its local pictures and for run directories that were moved. ``name``: the
    notebook's name, which is the title if no first-level heading is in the notebook. ``unfolded``: no details of runs
    are folded, for print.
    """
    bundle = FigureBundle(light=light)
    runs = _NotebookRuns(folder, bundle)
    converter = CellConverter(notebook, folder, runs.draw_panel, light=light)
    cells = converter.convert()
    contents = _add_heading_ids(cells)
    appendix = runs.make_appendix()
    heading = next((entry.text for entry in contents if entry.level == 1), "")
    undrawn_formulas = _draw_formulas_of(cells) if light else 0
    has_math = not light and any(_MATH.search(part) for cell in cells for part in (cell.source, *cell.outputs))
    components = tuple(sorted(converter.bokeh_components | ({"mathjax"} if has_math else set())))
    return render_template(
        "notebook.html",
        title=heading or name,
        needs_title=not heading,
        name=name,
        cells=cells,
        contents=contents,
        runs=appendix,
        code_css=_code_css(),
        links=to_script_json(converter.links) if converter.links else "",
        light=light,
        unfolded=unfolded,
        undrawn_formulas=undrawn_formulas,
        **frame_variables(bundle, components=components, needs_bokeh=converter.has_bokeh),
    )


def _draw_formulas_of(cells: list[Cell]) -> int:
    """Replace the formulas in the cells by SVGs. Returns how many could not be drawn and stay TeX."""
    undrawn = 0
    for cell in cells:
        if cell.kind == "markdown":
            cell.source, undrawn_in_source = draw_formulas(cell.source)
            undrawn += undrawn_in_source
        outputs = [draw_formulas(output) for output in cell.outputs]
        cell.outputs = [output for output, _ in outputs]
        undrawn += sum(undrawn_in_output for _, undrawn_in_output in outputs)
    return undrawn


class _NotebookRuns:
    """The runs whose panels a notebook shows. Each run is read once; each panel gets its own figures."""

    def __init__(self, folder: Path, bundle: FigureBundle) -> None:
        self._folder = folder
        self._bundle = bundle
        self._runs: dict[Path, tuple[int, run_data.RunData]] = {}  # path -> number in the appendix, data
        self._panel_count = 0

    def draw_panel(self, metadata: Mapping[str, Any]) -> Markup | None:
        """The figures of the runs that a panel showed; several runs are also compared.

        ``metadata``: ``{"runs": [path, ...]}``. None if none of the run directories is found.
        """
        paths = [path for name in metadata.get("runs", []) if (path := self._find(str(name))) is not None]
        if not paths:
            return None
        runs = [self._read(path) for path in paths]
        comparison = None
        if len(runs) > 1:
            self._panel_count += 1
            comparison = compare_runs(runs, self._bundle, prefix=f"panel{self._panel_count}-")
        panels = Markup("").join(self._draw_run(path, run) for path, run in zip(paths, runs, strict=True))
        return Markup(templates().get_template("panels.html").render(panels=panels, comparison=comparison))

    def _read(self, path: Path) -> run_data.RunData:
        if path not in self._runs:
            self._runs[path] = (len(self._runs) + 1, run_data.read(path))
        return self._runs[path][1]

    def _draw_run(self, path: Path, run: run_data.RunData) -> Markup:
        self._panel_count += 1
        section = make_section(run, self._bundle, plots(), prefix=f"panel{self._panel_count}-", level=4)
        number, _ = self._runs[path]
        return Markup(templates().get_template("panel.html").render(r=section, appendix=f"run{number}-run"))

    def make_appendix(self) -> list[RunSection]:
        """The sections of all runs, without figures: the panels show these."""
        no_figures = FigureBundle(light=True)
        return [
            make_section(run, no_figures, [], prefix=f"run{number}-", level=4) for number, run in self._runs.values()
        ]

    def _find(self, path: str) -> Path | None:
        """Look for a run directory at its path, then beside the notebook, then in the home of runs."""
        if not path:
            return None
        name = Path(path).name
        for candidate in (Path(path), self._folder / "runs" / name, self._folder / name, run_directory.home() / name):
            if _is_run(candidate):
                return candidate.resolve()
        return None


def _is_run(path: Path) -> bool:
    try:
        return path.is_absolute() and path.is_dir() and run_directory.is_run(path)
    except (OSError, RunDirectoryError):
        return False


def _add_heading_ids(cells: list[Cell]) -> list[ContentsEntry]:
    """Give every heading in the Markdown cells a unique id. Returns the headings in order."""
    contents: list[ContentsEntry] = []
    used: set[str] = set()

    def add_id(match: re.Match[str]) -> str:
        level, text = int(match[1]), Markup(match[3]).striptags()
        slug = base = re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:60] or "section"
        occurrence = 1
        while f"s-{slug}" in used:
            occurrence += 1
            slug = f"{base}-{occurrence}"
        used.add(f"s-{slug}")
        contents.append(ContentsEntry(level=level, id=f"s-{slug}", text=text))
        return f'<h{level} id="s-{slug}">{match[3]}</h{level}>'

    for cell in cells:
        if cell.kind == "markdown":
            cell.source = Markup(_HEADING.sub(add_id, cell.source))
    return contents


def _code_css() -> str:
    """CSS rules for highlighted code, in light and dark colours."""
    from pygments.formatters import HtmlFormatter

    light = HtmlFormatter(style="default").get_style_defs(".code")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".code")
    light_rules = [line for line in light.splitlines() if line.startswith(".code .")]
    dark_rules = [line for line in dark.splitlines() if line.startswith(".code .")]
    return "\n".join([*light_rules, "@media screen and (prefers-color-scheme: dark) {", *dark_rules, "}"])
