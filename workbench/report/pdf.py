"""Prints an HTML report to PDF with a Chromium or Chrome browser of this machine."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from workbench.errors import ReportError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-extensions",
    "--no-pdf-header-footer",
)
#: seconds after which printing is given up
TIMEOUT_S = 120.0


def find_browser() -> str:
    """Path of the browser that prints. Raises ``ReportError`` when there is none."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise ReportError(
            f"a PDF needs a browser, and none of {', '.join(BROWSERS)} is on the PATH: install one "
            "(Debian: apt install chromium), or write an HTML report and print it with your own browser"
        )
    return browser


def print_to_pdf(html: Path, target: Path) -> None:
    """Print the file ``html`` to the PDF ``target``.

    Raises ``ReportError`` when no browser is found, or when it fails (with the end of its error output).
    """
    browser = find_browser()
    with tempfile.TemporaryDirectory(prefix="workbench-print-") as profile:
        made = Path(profile) / "report.pdf"
        command = [browser, *_FLAGS, f"--user-data-dir={profile}", f"--print-to-pdf={made}", html.absolute().as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise ReportError(
                f"{browser} did not print {target} within {TIMEOUT_S:.0f} s: write an HTML report instead"
            ) from error
        if done.returncode != 0 or not made.exists():
            reason = done.stderr.decode("utf-8", errors="replace").strip()[-500:] or f"exit code {done.returncode}"
            raise ReportError(f"{browser} could not print {target}: {reason}")
        shutil.copyfile(made, target)
