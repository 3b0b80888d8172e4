"""Writes the report of one run or several runs as one HTML file: ``render``."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from workbench.errors import RunDirectoryError
from workbench.plots import plots, theme
from workbench.plots.base import Plot
from workbench.report import run_data, words
from workbench.report.compared import compare_runs
from workbench.report.figures import FigureBundle, load_bokehjs, to_script_json
from workbench.report.pdf import find_browser, print_to_pdf
from workbench.report.run_data import RunData
from workbench.report.sections import make_section
from workbench.rundir.directory import REPORT_FILE

RunName = str | Path

#: control characters and noncharacters that must not be in HTML (https://html.spec.whatwg.org, 13.2.3.5)
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")


def render(
    runs: RunName | Sequence[RunName],
    out: str | Path | None = None,
    *,
    figures: Iterable[Plot] | None = None,
    light: bool = False,
    pdf: bool = False,
    title: str = "",
    labels: Sequence[str] = (),
) -> Path:
    """Write the report of one or more run directories as one HTML file that needs no network, and return its path.

    Several runs are also compared. Missing and damaged files of a run are described in its report.

    ``out``: the file to write, or a directory for it (default: ``report.html`` in the first run directory).
    ``figures``: the plots to draw (default: all of ``workbench.plots``). ``light``: write static pictures instead of
    interactive figures, and no scripts. ``pdf``: write a PDF instead of HTML; needs a Chromium or Chrome browser on
    this machine. ``labels``: one name per run in the comparison (default: the names of the runs).

    Raises ``RunDirectoryError`` if a path is not a run directory or ``out`` cannot be written, and ``ReportError`` if
    the PDF cannot be printed.
    """
    names = [runs] if isinstance(runs, (str, Path)) else list(runs)
    if not names:
        raise RunDirectoryError(
            "no run was given to report on: pass the name or directory of a run; `workbench runs` lists them"
        )
    if pdf:
        find_browser()  # before all figures are drawn
    data = [run_data.read(name) for name in names]
    html = render_html(
        data,
        plots() if figures is None else list(figures),
        light=light or pdf,
        unfolded=pdf,
        title=title,
        labels=labels,
    )
    return write_report(html, report_path(out, data[0].path / REPORT_FILE, pdf=pdf), pdf=pdf)


def report_path(out: str | Path | None, default: Path, *, pdf: bool) -> Path:
    """The path to write a report to: ``out`` or, if that is None, ``default``.

    If the path is a directory, the report gets the name of ``default`` in it. With ``pdf`` the suffix is ``.pdf``.
    """
    target = Path(out).expanduser() if out is not None else default
    if target.is_dir():
        target /= default.name
    return target.with_suffix(".pdf") if pdf else target


def write_report(html: str, target: Path, *, pdf: bool = False) -> Path:
    """Write the HTML text, or the PDF printed from it, to ``target`` and return its absolute path.

    The HTML is first written to a temporary file beside ``target``, so that no incomplete report is left at ``target``.
    Raises ``RunDirectoryError`` if a file cannot be written, and ``ReportError`` if the PDF cannot be printed.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.html")
        try:
            temporary.write_text(html, encoding="utf-8", errors="replace")
            if pdf:
                print_to_pdf(temporary, target)
            else:
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write the report {target}: {error.strerror}; pass another path with -o FILE"
        ) from error
    return target.absolute()


def render_html(
    runs: Sequence[RunData],
    figures: Sequence[Plot],
    *,
    light: bool = False,
    unfolded: bool = False,
    title: str = "",
    labels: Sequence[str] = (),
) -> str:
    """The report as HTML text. ``unfolded``: nothing is folded, for print."""
    bundle = FigureBundle(light=light)
    several = len(runs) > 1
    sections = [
        make_section(run, bundle, figures, prefix=f"run{number}-" if several else "", level=3 if several else 2)
        for number, run in enumerate(runs, 1)
    ]
    comparison = compare_runs(runs, bundle, labels) if several else None
    return render_template(
        "report.html",
        title=title or (f"{len(runs)} runs compared" if several else runs[0].name),
        kicker="Training report",
        runs=sections,
        comparison=comparison,
        unfolded=unfolded,
        **frame_variables(bundle),
    )


def render_template(template: str, /, **variables: Any) -> str:
    """The page of a template. Control characters that HTML forbids, such as NUL, become U+FFFD."""
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", templates().get_template(template).render(**variables))


def frame_variables(
    bundle: FigureBundle, *, components: tuple[str, ...] = (), needs_bokeh: bool = False
) -> dict[str, Any]:
    """The variables of ``frame.html``: the compressed figures and BokehJS ("" if not needed), colours and version.

    ``components``: the components of BokehJS that the page needs besides the core. ``needs_bokeh``: include BokehJS
    even if the bundle has no figures and there are no components.
    """
    needs_bokeh = needs_bokeh or bundle.count > 0 or bool(components)
    return {
        "figures_base64": bundle.to_base64() if bundle.count else "",
        "bokehjs_base64": load_bokehjs(*components) if needs_bokeh and not bundle.light else "",
        "colours": to_script_json(theme.COLOURS),
        "written": words.format_local_time(time.time()),
        "version": metadata.version("dist-workbench"),
    }


@cache
def templates() -> Environment:
    """The Jinja environment of the reports, with its filters. Values are escaped unless they are marked ``safe``."""
    environment = Environment(
        loader=PackageLoader("workbench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=words.format_number,
        bytes=words.format_bytes,
        text=words.format_value,
        ranks=words.format_event_ranks,
    )
    return environment
