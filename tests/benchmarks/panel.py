"""What the live panel costs: the kernel's share of a core, bytes to the browser, and the browser's heap over an hour.

Cost: 64 ranks take two steps a second (another process pretends to), every tab is fed, a page acknowledges at once.
Soak: 7,200 updates of 4 ranks, an hour at 2 Hz, drawn in chromium as fast as it draws (every tenth; rows of all of
them are appended), the tab changed now and then; the heap is read after a garbage collection.

    python tests/benchmarks/panel.py [--ranks 64] [--seconds 60] [--updates 7200]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import describe_machine
from tests.browser.lab import BROWSER_FLAGS, find_browser
from tests.browser.static_page import StaticPanel
from tests.fake_records import FakeRank
from tests.fake_run import fake_spec, layer_names, write_spec
from widgets.page.wire import bokeh_version
from widgets.panel.feed import ALL_TABS, Feed
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store

ROOT = Path(__file__).resolve().parents[2]
GOAL_CORE, GOAL_BYTES = 0.03, 50_000
STEP_S = 0.5
#: of the soak's updates; those between are appended to the figures all the same
DRAW_EVERY = 10
TABS = ("overview", "ranks", "gradients", "inside", "communication", "timeline", "samples", "console", "controls")
_WRITE = """
import sys
from tests.fake_run import LiveFakeRun
LiveFakeRun(sys.argv[1], ranks=int(sys.argv[2]), steps=100_000, step_s=0.5, layers=4, grad_every=20).wait()
"""


def cost(ranks: int, seconds: float) -> None:
    """Print the kernel's share of a core and the bytes per second, once everything has been sent."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        writer = subprocess.Popen([sys.executable, "-c", _WRITE, str(run), str(ranks)], cwd=ROOT)
        try:
            while not (run / "spec.toml").exists() or len(list(run.glob("rank-*/steps.arrow"))) < ranks:
                time.sleep(0.2)
            share, rate, updates = _measure(run, seconds)
        finally:
            writer.terminate()
            writer.wait()
    print(f"kernel {100 * share:.2f} % of a core (goal < {100 * GOAL_CORE:.0f} %), {updates:.2f} updates/s, ", end="")
    print(f"{rate / 1e3:.1f} kB/s to the browser (goal <= {GOAL_BYTES / 1e3:.0f} kB/s), {ranks} ranks")


def _measure(run: Path, seconds: float) -> tuple[float, float, float]:
    sent: list[int] = []
    views = [{"run": 0, "tab": tab, "visible": True} for tab in ALL_TABS]

    def send(content: dict[str, Any], buffers: list[bytes]) -> None:
        sent.append(len(json.dumps(content)) + sum(map(len, buffers)))
        if "seq" in content:
            feed.look(views, content["seq"])

    feed = Feed(Store(run), send)
    feed.start()
    feed.hello(bokeh_version())
    time.sleep(10)
    sent.clear()
    began, cpu = time.monotonic(), time.process_time()
    time.sleep(seconds)
    took, spent = time.monotonic() - began, time.process_time() - cpu
    feed.close()
    return spent / took, sum(sent) / took, len(sent) / took


def soak(updates: int, ranks: int = 4) -> None:
    """Print the heap of the page over so many updates."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        flags = [*BROWSER_FLAGS, "--enable-precise-memory-info"]
        browser = playwright.chromium.launch(executable_path=find_browser(), args=flags)
        page = browser.new_page()
        page.set_viewport_size({"width": 1100, "height": 1200})
        spec = fake_spec(ranks=ranks, steps=updates)
        write_spec(Path(folder), spec)
        writers = [RankLogWriter(folder, rank, flush_s=1e6, capacity=10**6) for rank in range(ranks)]
        simulated = [FakeRank(w.rank, spec, layer_names(4), w, 2) for w in writers]
        for writer in writers:
            writer.event("state", "running")
        panel = StaticPanel(page, Path(folder), start=False)
        feed, start, began = panel.feeds[0], time.monotonic(), time.monotonic()
        heaps: list[tuple[int, float]] = []
        for update in range(1, updates + 1):
            now = start + update * STEP_S
            for rank in simulated:
                rank.step(update, now, STEP_S)
                rank.sample(update, now, update * STEP_S)
                rank.milestone(update, now)
                rank.writer.flush()
            feed._pace.heard(now, feed._pace.sent)  # the next update is sent whether the last one is drawn or not
            feed._tick(now)
            if update % DRAW_EVERY == 0:
                panel.pump(lambda: panel.drawn >= feed._pace.sent, 60)
                panel.messages.clear()
            if update % 200 == 0:
                page.locator(f".dw [role=tab][id$='-{TABS[update // 200 % len(TABS)]}']").click()
            if update % max(1, updates // 12) == 0:
                heaps.append((update, _heap(page)))
                print(f"update {update:6d}: heap {heaps[-1][1]:.1f} MB, {time.monotonic() - began:.0f} s", flush=True)
        for writer in writers:
            writer.close()
        browser.close()
    middle, last = heaps[len(heaps) // 2][1], heaps[-1][1]
    print(f"heap at half time {middle:.1f} MB, at the end {last:.1f} MB: {last / middle:.2f}x (flat: about 1)")
    print(f"errors in the page: {panel.errors[:3]}")


def _heap(page: Any) -> float:
    """Megabytes that are alive. The browser collects garbage itself: a page's ``gc()`` leaves what the DOM holds."""
    devtools = page.context.new_cdp_session(page)
    for _ in range(2):
        devtools.send("HeapProfiler.collectGarbage")
    devtools.detach()
    return float(page.evaluate("() => performance.memory.usedJSHeapSize")) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--updates", type=int, default=7200)
    arguments = parser.parse_args()
    print(describe_machine())
    if arguments.seconds:
        cost(arguments.ranks, arguments.seconds)
    if arguments.updates:
        soak(arguments.updates)


if __name__ == "__main__":
    main()
