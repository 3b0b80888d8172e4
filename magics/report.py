"""``%dist_report``: write a report of runs, or of the whole notebook, as one HTML file."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments
from IPython.display import display

from magics.words import parse
from widgets.page.save import save_notebook
from workbench.errors import ConfigError
from workbench.run.api import Run


@magics_class
class ReportMagics(Magics):
    """Write reports from a notebook."""

    @magic_arguments()
    @argument(
        "run",
        metavar="RUN",
        nargs="*",
        help="run directories or names; several are compared (default: the newest); with --notebook, the notebook file",
    )
    @argument("--notebook", action="store_true", help="save the notebook and write its report, with its runs")
    @argument(
        "-o", "--out", metavar="FILE", help="where to write (default: in the run directory, or beside the notebook)"
    )
    @argument("--pdf", action="store_true", help="write a PDF, with this machine's Chromium, instead of HTML")
    @argument(
        "--light",
        action="store_true",
        help="static pictures instead of interactive figures: a small file without scripts",
    )
    @line_magic
    def dist_report(self, line: str) -> Path:
        """Write a report as one HTML file that needs no network, show a link to it and return its path."""
        arguments = parse(self.dist_report, line)
        options: dict[str, Any] = {"pdf": arguments.pdf, "light": arguments.light}
        if arguments.notebook:
            return _notebook(arguments.run, arguments.out, options)
        from workbench.report import render

        runs = [Run(name).path for name in arguments.run or [None]]
        written = render(runs, arguments.out, **options)
        display(_link(written), raw=True)
        return written


def _notebook(names: list[str], out: str | None, options: dict[str, Any]) -> Path:
    from workbench.report.notebook.exporter import current_notebook, render_notebook, saved_at

    if len(names) > 1:
        raise ConfigError(f"--notebook takes one FILE, not {len(names)}: {', '.join(names)}", field="--notebook")
    notebook = Path(names[0]).expanduser() if names else current_notebook()
    saved_now = not names and save_notebook(notebook)
    written = render_notebook(notebook, out, widgets=_live_widgets(), **options)
    advice = "" if names else " (later changes are missing: save the notebook with Ctrl-S and run this again)"
    state = "" if saved_now else f" as saved at {saved_at(notebook)}{advice}"
    display(_link(written, f" of {notebook.name}{state}"), raw=True)
    return written


def _live_widgets() -> dict[str, Any]:
    """Return the states of this kernel's widgets, as the notebook file may not contain them."""
    from ipywidgets import Widget

    state: dict[str, Any] = Widget.get_manager_state(drop_defaults=False)["state"]
    return state


def _link(report: Path, note: str = "") -> dict[str, str]:
    """Return a link for a notebook (relative, so that JupyterLab can open it), and the path for a terminal.

    ``note`` follows the word "report".
    """
    address = quote(os.path.relpath(report))
    shown, note_html = html.escape(str(report)), html.escape(note)
    return {
        "text/plain": f"report{note}: {report}",
        "text/html": f'Report{note_html}: <a href="{html.escape(address)}" target="_blank" rel="noopener">{shown}</a>',
    }
