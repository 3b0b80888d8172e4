"""Runs the faults of ``tests/training/faults`` and writes the page that tells what came of them, with measured times.

    python -m tests.training.faults.page [--out docs/faults.md]

Exit code 1 when a promise does not hold; the page is then left as it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from tests.benchmarks.machine import describe_machine
from tests.training.faults.pairs import PAIRS, Pair, needed_presses

HERE = Path(__file__).parent
_HEAD = """# Faults

Each fault, brought about in rank 1 of two (or in what holds the ranks together) while they do each thing. In a
collective, one rank waits for the other. After each, the prompt is back, the last column holds, the next `%dist_train`
works at once, and no process of ranks that ended is left. [When it hangs](hangs.md) is about the causes,
[`--max-restarts`](runs.md#a-run-that-survives-its-ranks) about runs that go on by themselves.

"""
_COLUMNS = "| fault | while | prompt back after (s) | Ctrl-C | then |\n|--|--|--|--|--|\n"
_FOOT = """
`python -m tests.training.faults.page --out docs/faults.md` ran `tests/training/faults` and wrote this page: {machine}.
On average {load:.1f} processes wanted a core meanwhile. The seconds begin with the fault. Ranks that have not
stopped 3 s after Ctrl-C are ended and started anew. Of a training, the first press asks it to stop after its step,
which may take long, and the second interrupts it. Out of memory is a limit of a cgroup, a full disk a file system of
40 MB.
"""


class Recorder:
    """A plugin of pytest that keeps what the tests measured. ``seconds``: by the name of a pair."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        measured = dict(report.user_properties)
        if report.when == "call" and "seconds" in measured:
            self.seconds[report.nodeid.partition("[")[2].removesuffix("]")] = float(str(measured["seconds"]))


def row(pair: Pair, seconds: float) -> str:
    """The row of a pair."""
    return f"| {pair.fault} | {pair.during} | {seconds:.1f} | {needed_presses(pair) or ''} | {pair.promise} |\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/faults.md"))
    out = parser.parse_args().out
    recorder = Recorder()
    failed = pytest.main(["-q", "-n0", "--as-shipped", "-k", "test_a_", str(HERE)], plugins=[recorder])
    if failed:
        return 1
    rows = "".join(row(pair, recorder.seconds[pair.name]) for pair in PAIRS)
    foot = _FOOT.format(machine=describe_machine(), load=os.getloadavg()[2])
    out.write_text(f"{_HEAD}{_COLUMNS}{rows}{foot}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
