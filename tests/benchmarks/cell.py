"""Round trip of a trivial cell: our ``%%dist`` against ipyparallel's ``%%px``, 2 and 8 ranks.

    python tests/benchmarks/cell.py [--cells 200]

Both sides run in one IPython shell, on their own engines (ipyparallel's come from its own local launcher, with its own
controller), alternating cell by cell. Printed: the medians, their ratio, and the goal.
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

GOAL = 1.2
CELL = "1 + 1"


def timed(cell: Callable[[], object]) -> float:
    """Milliseconds of one call; what it prints is dropped."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        started = time.perf_counter()
        cell()
        return 1e3 * (time.perf_counter() - started)


def measure(shell: InteractiveShell, n: int, cells: int) -> tuple[float, float]:
    """p50 in milliseconds of ``%%dist`` and of ``%%px`` with ``n`` ranks each."""
    Session.up(n, preload="")
    cluster = ipyparallel.Cluster(n=n, log_level=40)
    px_client = cluster.start_and_connect_sync()
    view = px_client[:]
    view.block = True
    view.activate()
    try:
        ours, theirs = [], []
        for number in range(cells + 5):
            both = (
                timed(lambda: shell.run_cell_magic("dist", "", CELL)),
                timed(lambda: shell.run_cell_magic("px", "", CELL)),
            )
            if number >= 5:
                ours.append(both[0])
                theirs.append(both[1])
        return statistics.median(ours), statistics.median(theirs)
    finally:
        px_client.close()
        cluster.stop_cluster_sync()
        session = Session.current()
        if session is not None:
            session.down()


def main() -> None:
    """Print both sides and the ratio at 2 and 8 ranks."""
    parser = argparse.ArgumentParser(description="round trip of a trivial cell, %%dist against %%px")
    parser.add_argument("--cells", type=int, default=200)
    cells = parser.parse_args().cells
    shell = InteractiveShell.instance()
    shell.register_magics(ClusterMagics)
    for n in (2, 8):
        ours, theirs = measure(shell, n, cells)
        ratio = f"ratio {ours / theirs:.2f} (goal <= {GOAL})"
        print(f"{n} ranks, {cells} cells: %%dist p50 {ours:.1f} ms, %%px p50 {theirs:.1f} ms, {ratio}")


if __name__ == "__main__":
    main()
