"""A report on paper: printed by a chromium or Chrome of this machine."""

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
PATIENCE_S = 120.0


def print_to_pdf(html: Path, target: Path) -> None:
    """Print an HTML file. ``ReportError`` when there is no browser, or when it fails (with its last words)."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise ReportError(
            f"a PDF needs a browser that prints, and none of {', '.join(BROWSERS)} is on the PATH: install one "
            "(Debian: apt install chromium), or write the HTML and print it from yours"
        )
    with tempfile.TemporaryDirectory(prefix="workbench-print-") as profile:
        made = Path(profile) / "report.pdf"
        command = [browser, *_FLAGS, f"--user-data-dir={profile}", f"--print-to-pdf={made}", html.absolute().as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise ReportError(
                f"{browser} did not print {target} within {PATIENCE_S:.0f} s: write the HTML instead"
            ) from error
        if done.returncode != 0 or not made.exists():
            said = done.stderr.decode("utf-8", errors="replace").strip()[-500:] or f"exit code {done.returncode}"
            raise ReportError(f"{browser} could not print {target}: {said}")
        shutil.copyfile(made, target)
