"""Round trip of a trivial cell: our ``%%dist`` against ipyparallel's ``%%px``, 2 and 8 ranks.

    python -m tests.benchmarks.cell [--cells 200]

Both sides run in one IPython shell, on their own engines (ipyparallel's come from its own local launcher, with its own
controller), alternating cell by cell. Printed: the medians, their ratio, and the goal.
"""

from __future__ import annotations

import argparse
import statistics

from tests.benchmarks.px import both

GOAL = 1.2
CELL = "1 + 1"
#: cells that do not count
WARM_UP = 5


def measure(n: int, cells: int) -> tuple[float, float]:
    """p50 in milliseconds of ``%%dist`` and of ``%%px`` with ``n`` ranks each."""
    with both(n) as run:
        taken = [run(CELL) for _ in range(cells + WARM_UP)][WARM_UP:]
    ours, theirs = zip(*taken, strict=True)
    return 1e3 * statistics.median(ours), 1e3 * statistics.median(theirs)


def main() -> None:
    """Print both sides and the ratio at 2 and 8 ranks."""
    parser = argparse.ArgumentParser(description="round trip of a trivial cell, %%dist against %%px")
    parser.add_argument("--cells", type=int, default=200)
    cells = parser.parse_args().cells
    for n in (2, 8):
        ours, theirs = measure(n, cells)
        ratio = f"ratio {ours / theirs:.2f} (goal <= {GOAL})"
        print(f"{n} ranks, {cells} cells: %%dist p50 {ours:.1f} ms, %%px p50 {theirs:.1f} ms, {ratio}")


if __name__ == "__main__":
    main()
