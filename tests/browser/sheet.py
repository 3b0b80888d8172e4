"""Pictures of every tab of the panel, and of the report, for a look before and after a change.

python -m tests.browser.sheet --out DIR [--runs 2 8 64 tp logged failed starting] [--width 900 1280]
[--theme light dark] [--tabs overview ... report]

Each picture is ``TAB-RUN-WIDTH-THEME.png``; ``index.html`` shows all of them, those of one tab beside each other.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.browser.lab import BROWSER_FLAGS, find_browser
from tests.browser.static_page import StaticPanel
from tests.fake_media import add_media
from tests.fake_run import make_fake_run
from workbench.report import render

REPORT = "report"
TABS = (
    "overview", "ranks", "gradients", "inside", "communication", "timeline", "samples", "console", "controls",
    "compare", REPORT,
)  # fmt: skip
EARLY = "validation_loss has not improved for 3 evaluations: 1.52 at step 50 is best, 1.61 now"
_TEXT = ("text",)
_CLASSES = ("accuracy", "confusion_matrix")
#: the runs that are shown: a language model and a classifier, each way to split a model, one with epochs, images and an
#: early end, and runs with little to show
RUNS: dict[str, dict[str, Any]] = {
    "2": {"ranks": 2, "plugin": "ddp", "steps": 200, "state": "running", "measures": _TEXT},
    "8": {"ranks": 8, "plugin": "hybrid", "tp": 2, "pp": 2, "micro_batches": 4, "steps": 120, "state": "running",
          "measures": _CLASSES, "unit": "samples"},
    "64": {"ranks": 64, "plugin": "hybrid", "pp": 4, "micro_batches": 8, "steps": 60, "layers": 12, "state": "running"},
    "tp": {"ranks": 2, "plugin": "hybrid", "tp": 2, "steps": 200, "measures": _TEXT},
    "logged": {"ranks": 2, "plugin": "ddp", "steps": 200, "measures": _CLASSES, "unit": "samples", "epochs": 8,
               "early": EARLY},
    "failed": {"ranks": 3, "plugin": "ddp", "steps": 120, "state": "failed", "measures": _TEXT},
    "starting": {"ranks": 2, "plugin": "ddp", "steps": 200, "state": "starting"},
}  # fmt: skip
#: the machine may be busy
TIMEOUT_MS = 300_000
READY = "() => document.querySelector('.dw')?.dataset.status"
#: all figures of a report are drawn, or it has none
DRAWN = "() => document.documentElement.dataset.drawn || !document.querySelector('.plot')"
#: style of ``index.html``
_STYLE = "body{font:14px sans-serif;margin:16px;background:#999}div{display:flex;gap:12px;align-items:start}"


def main() -> None:
    """Take the pictures that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the pictures")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS), help="by their number of ranks")
    parser.add_argument("--width", type=int, nargs="+", default=[900, 1280], help="widths of the page in pixels")
    parser.add_argument("--theme", nargs="+", default=["light", "dark"], choices=["light", "dark"])
    parser.add_argument("--tabs", nargs="+", default=list(TABS), choices=list(TABS))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=BROWSER_FLAGS)
        other = make_fake_run(Path(folder) / "2026-05-01-120000-baseline", steps=200, measures=_TEXT)
        for name in given.runs:
            run = make_fake_run(Path(folder) / f"2026-05-01-120100-{name}", **RUNS[name])
            if name == "logged":
                add_media(run)
            if REPORT in given.tabs:
                render(run)
            for width, theme in itertools.product(given.width, given.theme):
                page = browser.new_page(color_scheme=theme)
                page.set_viewport_size({"width": width, "height": 1250})
                page.set_default_timeout(TIMEOUT_MS)
                paths = {tab: given.out / f"{tab}-{name}-{width}-{theme}.png" for tab in given.tabs}
                report = paths.pop(REPORT, None)
                _take_panel(page, [run, other], paths, dark=theme == "dark")
                if report is not None:
                    _take_report(page, run / "report.html", report)
                page.close()
        browser.close()
    _write_index(given.out, given.tabs)


def _take_panel(page: Any, runs: list[Path], paths: dict[str, Path], *, dark: bool) -> None:
    """Take a picture of each tab that the panel has."""
    panel = StaticPanel(page, *runs, dark=dark, on_control=lambda name, value: None)
    panel.pump(READY, TIMEOUT_MS / 1000)
    for tab, path in paths.items():
        if page.locator(f".dw [role=tab][id$='-{tab}']").is_visible():
            panel.open(tab)
            if tab == "samples" and page.locator(".dw-logged").is_visible():
                page.get_by_label("Name of the image or text").select_option(index=1)
            panel.pump(timeout_s=0.8, fails=False)
            page.locator(".dw").screenshot(path=str(path))
    for error in panel.errors:
        print(*runs, error)
    panel.close()


def _take_report(page: Any, report: Path, path: Path) -> None:
    """Take a picture of a whole report."""
    page.goto(report.as_uri())
    page.wait_for_function(DRAWN)
    page.wait_for_timeout(300)
    page.screenshot(path=str(path), full_page=True)


def _write_index(out: Path, tabs: Iterable[str]) -> None:
    """Write a page that shows the pictures: one row per run and tab."""
    rows = []
    for tab, name in itertools.product(tabs, RUNS):
        taken = sorted(out.glob(f"{tab}-{name}-*.png"))
        shown = "".join(f'<a href="{one.name}"><img src="{one.name}" width="640" loading="lazy"></a>' for one in taken)
        rows += [f"<h3>{tab}, {name}</h3><div>{shown}</div>"] if taken else []
    page = f"<!doctype html><meta charset='utf-8'><title>panel</title><style>{_STYLE}</style>{''.join(rows)}\n"
    (out / "index.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
