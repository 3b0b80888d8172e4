"""Listing many runs: with the index lost (every directory is read), with it on the disk, and in a table that lives.

    python tests/benchmarks/history.py [--runs 1000]

The runs are copies of one of 200 steps on 2 ranks. Goal: 1,000 runs list in less than a second.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.machine import describe_machine
from tests.fake_run import make_fake_run
from workbench.history.index import INDEX_FILE, RunIndex

GOAL_S = 1.0


def timed(act: Callable[[], object], repeats: int) -> float:
    """Median seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Print the three times, and that of the whole command."""
    parser = argparse.ArgumentParser(description="listing many runs")
    parser.add_argument("--runs", type=int, default=1000)
    count = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        first = make_fake_run(home / "2026-05-01-120000-run-0", steps=200)
        for number in range(1, count):
            shutil.copytree(first, home / f"2026-05-01-{120000 + number}-run-{number}")

        def cold() -> None:
            (home / INDEX_FILE).unlink(missing_ok=True)
            assert len(RunIndex(home).rows()) == count

        lost = timed(cold, 1)
        warm = timed(lambda: RunIndex(home).rows(), 5)
        kept = RunIndex(home)
        kept.rows()
        live = timed(kept.rows, 5)
        command = [sys.executable, "-m", "workbench.cli.main", "runs", "list", "--json"]
        environment = {"WORKBENCH_HOME": folder, "PYTHONPATH": str(Path(__file__).parents[2])}
        whole = timed(lambda: subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL), 3)
        print(describe_machine())
        print(f"{count} runs, index lost: {lost:.2f} s ({1e3 * lost / count:.2f} ms a run)")
        print(f"{count} runs, index on the disk: {warm:.3f} s, {GOAL_S / warm:.1f}x the goal of {GOAL_S} s")
        print(
            f"{count} runs, table that lives: {live:.3f} s; index file {(home / INDEX_FILE).stat().st_size // 1000} kB"
        )
        print(f"{count} runs, `workbench runs list --json` with its start: {whole:.2f} s")


if __name__ == "__main__":
    main()
