"""Time of a cell that prints many lines on each of 2 ranks: our ``%%dist`` against ipyparallel's ``%%px``.

    python -m tests.benchmarks.lines [--lines 100000] [--repeats 3]

Both sides run in one IPython shell, on their own engines (ipyparallel's come from its own local launcher, with its own
controller), alternating. What is shown goes nowhere. Printed: the medians, their ratio, the goal, and how many lines
``%%dist`` kept.
"""

from __future__ import annotations

import argparse
import statistics

from tests.benchmarks.px import both
from workbench.cluster.session import Session

GOAL = 2.0
RANKS = 2


def measure(lines: int, repeats: int) -> None:
    """Print both sides and their ratio."""
    code = f"for number in range({lines}): print(number)"
    with both(RANKS) as run:
        run("1")
        ours, theirs = zip(*(run(code) for _ in range(repeats)), strict=True)
        session = Session.current()
        assert session is not None
        kept = session.execute(code).outputs
        whole = [len(kept[rank].stdout.splitlines()) for rank in range(RANKS)]
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
    measure(arguments.lines, arguments.repeats)


if __name__ == "__main__":
    main()
