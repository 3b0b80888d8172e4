"""Time of a cell that prints many lines on each of 2 ranks: our ``%%dist`` against ipyparallel's ``%%px``.

    python -m tests.benchmarks.lines [--lines 100000] [--repeats 3]

Both sides run in one IPython shell, on their own engines (ipyparallel's come from its own local launcher, with its own
controller), alternating. What is shown goes nowhere. Printed: the medians, their ratio, the goal, and how many lines
``%%dist`` kept.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable

import ipyparallel
from IPython.core.interactiveshell import InteractiveShell

from magics.cluster import ClusterMagics
from workbench.cluster.session import Session

GOAL = 2.0
RANKS = 2


def timed(cell: Callable[[], object]) -> float:
    """Seconds of one call; what it prints is dropped."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        started = time.perf_counter()
        cell()
        return time.perf_counter() - started


def measure(shell: InteractiveShell, lines: int, repeats: int) -> None:
    """Print both sides and their ratio."""
    code = f"for number in range({lines}): print(number)"
    session = Session.up(RANKS, preload="")
    cluster = ipyparallel.Cluster(n=RANKS, log_level=40)
    client = cluster.start_and_connect_sync()
    view = client[:]
    view.block = True
    view.activate()
    try:
        shell.run_cell_magic("dist", "", "1")
        shell.run_cell_magic("px", "", "1")
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(timed(lambda: shell.run_cell_magic("dist", "", code)))
            theirs.append(timed(lambda: shell.run_cell_magic("px", "", code)))
        kept = session.execute(code).outputs
        whole = [len(kept[rank].stdout.splitlines()) for rank in range(RANKS)]
    finally:
        client.close()
        cluster.stop_cluster_sync()
        session.down()
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"{lines:,} lines from each of {RANKS} ranks, {repeats} times:")
    print(f"  %%dist {a:.2f} s, %%px {b:.2f} s, ratio {a / b:.2f} (goal <= {GOAL})")
    print(f"  lines that %%dist kept of each rank: {whole}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="many lines from ranks, %%dist against %%px")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    shell = InteractiveShell.instance()
    shell.register_magics(ClusterMagics)
    measure(shell, arguments.lines, arguments.repeats)


if __name__ == "__main__":
    main()
