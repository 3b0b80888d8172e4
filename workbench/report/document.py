"""``render``: one run or several as one HTML file."""

from __future__ import annotations

import os
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
from workbench.report.compared import comparison
from workbench.report.figures import Sheet, library, script_safe
from workbench.report.run_data import RunData
from workbench.report.sections import section_of
from workbench.rundir.directory import REPORT_FILE

RunName = str | Path


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
    """Write the report of a run directory, or of several, as one offline HTML file and return its path.

    ``out``: the file, or a directory for it; default ``report.html`` in the (first) run directory. ``figures``: default
    all of ``workbench.plots``. ``light``: still pictures and no scripts. ``pdf``: a PDF instead, printed by a chromium
    of this machine. Several runs are also compared, under their names or the ``labels``. Raises ``RunDirectoryError``
    when one is no run directory or ``out`` cannot be written, ``ReportError`` when nothing can print; whatever else is
    wrong with a run stands in the report.
    """
    names = [runs] if isinstance(runs, (str, Path)) else list(runs)
    if not names:
        raise RunDirectoryError("there is no run to report: name one, `workbench runs` lists them")
    found = [run_data.read(name) for name in names]
    html = page(found, plots() if figures is None else list(figures), light=light or pdf, title=title, labels=labels)
    return write(html, target_of(out, found[0].path / REPORT_FILE, pdf=pdf), pdf=pdf)


def target_of(out: str | Path | None, default: Path, *, pdf: bool) -> Path:
    """Where a report goes: ``out``, or its default name in the directory ``out``; ``.pdf`` when that is asked for."""
    target = Path(out).expanduser() if out is not None else default
    if target.is_dir():
        target /= default.name
    return target.with_suffix(".pdf") if pdf else target


def write(html: str, target: Path, *, pdf: bool = False) -> Path:
    """Write the file, beside and renamed. ``RunDirectoryError`` when it cannot be, ``ReportError`` for the PDF."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}.html")
        try:
            beside.write_text(html, encoding="utf-8", errors="replace")
            if pdf:
                from workbench.report.pdf import print_to_pdf

                print_to_pdf(beside, target)
            else:
                beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot write the report {target}: {error.strerror}; pass -o FILE") from error
    return target.absolute()


def page(
    runs: Sequence[RunData],
    figures: Sequence[Plot],
    *,
    light: bool = False,
    title: str = "",
    labels: Sequence[str] = (),
) -> str:
    """The report as HTML text."""
    sheet = Sheet(light=light)
    several = len(runs) > 1
    sections = [
        section_of(run, sheet, figures, prefix=f"run{number}-" if several else "", level=3 if several else 2)
        for number, run in enumerate(runs, 1)
    ]
    compared = comparison(runs, sheet, labels) if several else None
    return (
        templates()
        .get_template("report.html")
        .render(
            title=title or (f"{len(runs)} runs compared" if several else runs[0].name),
            kicker="Training report",
            runs=sections,
            comparison=compared,
            **scripts(sheet),
        )
    )


def scripts(sheet: Sheet, *, parts: tuple[str, ...] = (), always: bool = False) -> dict[str, Any]:
    """What the page's frame needs beside its content: packed figures and library ("" where nothing is to be drawn)."""
    needed = sheet.count > 0 or bool(parts) or always
    return {
        "payload": sheet.payload() if sheet.count else "",
        "bokeh": library(*parts) if needed and not sheet.light else "",
        "colours": script_safe(theme.COLOURS),
        "made": words.moment(time.time()),
        "version": metadata.version("dist-workbench"),
    }


@cache
def templates() -> Environment:
    """The templates, with the filters that they use; everything is escaped unless a template says otherwise."""
    environment = Environment(
        loader=PackageLoader("workbench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=words.number, gib=words.gibibytes, short=words.short, who=words.who)
    return environment
