"""Pictures of every tab of the panel, for a look: at 2, 8 and 64 ranks, light and dark, 900 and 1400 px wide.

python -m tests.browser.screens DIRECTORY [--ranks 2 8 64] [--widths 900 1400] [--tabs overview ...]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.browser.lab import BROWSER_FLAGS, find_browser
from tests.browser.static_page import StaticPanel
from tests.fake_run import make_fake_run

TABS = ("overview", "ranks", "gradients", "communication", "timeline", "samples", "console", "controls", "compare")
#: plans by number of ranks
PLANS: dict[int, dict[str, int | str]] = {
    2: {"plugin": "ddp", "steps": 200},
    8: {"plugin": "hybrid", "tp": 2, "pp": 2, "micro_batches": 4, "steps": 120},
    64: {"plugin": "hybrid", "pp": 4, "micro_batches": 8, "steps": 60, "layers": 12},
}
READY = "() => Number(document.querySelector('.dw')?.dataset.points) > 0"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(PLANS))
    parser.add_argument("--widths", type=int, nargs="+", default=[900, 1400])
    parser.add_argument("--modes", nargs="+", default=["light", "dark"])
    parser.add_argument("--tabs", nargs="+", default=list(TABS))
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=BROWSER_FLAGS)
        other = make_fake_run(Path(folder) / "2026-05-01-120000-baseline", steps=200)
        for ranks in given.ranks:
            run = Path(folder) / f"2026-05-01-120100-on-{ranks}-ranks"
            make_fake_run(run, ranks=ranks, state="running", **PLANS[ranks])  # type: ignore[arg-type]
            for width, mode in itertools.product(given.widths, given.modes):
                page = browser.new_page()
                page.set_viewport_size({"width": width, "height": 1250})
                panel = StaticPanel(page, run, other, dark=mode == "dark", on_control=lambda name, value: None)
                panel.pump(READY, 120)
                for tab in given.tabs:
                    panel.open(tab)
                    panel.pump(timeout_s=1.2, fails=False)
                    page.locator(".dw").screenshot(path=str(given.directory / f"{tab}-{ranks}-{width}-{mode}.png"))
                print(ranks, width, mode, panel.errors)
                panel.close()
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
