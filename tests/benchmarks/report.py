"""Measures the size of a long run's report and the time to write it. Goals for 10,000 steps x 8 ranks: 5 MB and 3 s.

    python tests/benchmarks/report.py [--steps 10000] [--ranks 8] [--rounds 3]

A fake run is written first (half a minute). Times are medians over rounds, after all imports. The script also prints
the parts of the time, the size and time of the light report, and the size without compression.
"""

from __future__ import annotations

import argparse
import gzip
import re
import statistics
import tempfile
import time
from base64 import b64decode
from pathlib import Path

from tests.benchmarks.machine import describe_machine
from tests.fake_run import make_fake_run
from workbench.plots import plots
from workbench.report import run_data
from workbench.report.document import render
from workbench.report.figures import FigureBundle

GOAL_MB, GOAL_S = 5.0, 3.0


def unpacked_bytes(report: Path) -> int:
    """The size that the file would have without compression of its figures and BokehJS."""
    html = report.read_text(encoding="utf-8")
    packed = re.findall(r'id="packed-[a-z]+">([^<]+)<', html)
    return len(html.encode()) + sum(len(gzip.decompress(b64decode(text))) - len(text) for text in packed)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="size and time of a long run's report")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="workbench-benchmark-") as folder:
        run = make_fake_run(Path(folder) / "run", ranks=arguments.ranks, steps=arguments.steps)
        log_mb = sum(file.stat().st_size for file in run.rglob("*.arrow")) / 1e6
        render(run, light=True)  # imports
        seconds, busy, light_seconds = [], [], []
        for _ in range(arguments.rounds):
            begin, begin_busy = time.perf_counter(), time.process_time()
            report = render(run)
            seconds.append(time.perf_counter() - begin)
            busy.append(time.process_time() - begin_busy)
            begin = time.perf_counter()
            light = render(run, Path(folder) / "light.html", light=True)
            light_seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        found = run_data.read(run)
        reading = time.perf_counter() - begin
        begin = time.perf_counter()
        FigureBundle(light=True).draw_plots(found.store, plots())
        drawing = time.perf_counter() - begin
        size, whole = report.stat().st_size / 1e6, unpacked_bytes(report) / 1e6
        took = statistics.median(seconds)
        print(describe_machine())
        print(f"{arguments.steps:,} steps x {arguments.ranks} ranks, {log_mb:.0f} MB of logs, {len(plots())} figures")
        print(f"report: {size:.2f} MB (goal <= {GOAL_MB}), {took:.2f} s (goal <= {GOAL_S})")
        print(f"  {statistics.median(busy):.2f} s of a core: what it takes where nothing else runs")
        print(f"  of which reading the logs {reading:.2f} s, columns and static pictures {drawing:.2f} s")
        print(f"  not compressed it would be {whole:.2f} MB: ratio {size / whole:.2f}")
        print(f"light: {light.stat().st_size / 1e6:.2f} MB, {statistics.median(light_seconds):.2f} s")


if __name__ == "__main__":
    main()
