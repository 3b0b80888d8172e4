"""``%dist_report``: a run as one offline HTML file."""

from __future__ import annotations

import html
import os
from pathlib import Path
from urllib.parse import quote

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

from workbench.report import render
from workbench.run import Run


@magics_class
class ReportMagics(Magics):
    """Reports from a notebook."""

    @magic_arguments()
    @argument("run", metavar="RUN", nargs="?", help="a run directory or a run's name (default: the newest run)")
    @argument("-o", "--out", metavar="FILE", help="where to write (default: report.html in the run directory)")
    @line_magic
    def dist_report(self, line: str) -> Path:
        """Write the report of a run as one HTML file that needs no network, show a link to it and return its path."""
        arguments = parse_argstring(self.dist_report, line)
        written = render(Run(arguments.run).path, arguments.out)
        display(_link(written), raw=True)
        return written


def _link(report: Path) -> dict[str, str]:
    """A link for a notebook (relative: JupyterLab opens it where it serves the folder), the path for a prompt."""
    address = quote(os.path.relpath(report))
    shown = html.escape(str(report))
    return {
        "text/plain": f"report: {report}",
        "text/html": f'Report: <a href="{html.escape(address)}" target="_blank" rel="noopener">{shown}</a>',
    }
