"""How often the verdict names the right rank: runs with a planted slow rank, a planted slow network, and none.

Each run trains a small model under ZeRO on 2 CPU ranks; every forward pass takes ``--work-ms``. The slow rank needs
``--slow-ms`` more in its forward pass, or as long more to hand over each message. Which rank is slow changes from run
to run. Without a slow rank the right answer is to name none.

    python -m tests.benchmarks.stragglers [--runs 10] [--steps 60] [--work-ms 60] [--slow-ms 30]
"""

from __future__ import annotations

import argparse
from typing import Any

from tests.benchmarks.machine import describe_machine
from tests.engine.frames import columns
from tests.engine.rank_pool import RankPool
from workbench.core.mesh import Mesh
from workbench.telemetry.phases import posting_time
from workbench.telemetry.stragglers import Straggler
from workbench.telemetry.verdict import verdict

#: what is planted -> the phase that is to be named
CASES = {"forward": "forward", "network": "communication", "": ""}
NAMES = {"forward": "slow rank", "network": "slow network", "": "none"}


def named(pool: RankPool, where: str, rank: int, given: argparse.Namespace) -> Straggler | None:
    """Train once with a delay ``where`` ("": none) on ``rank``, and return whom the verdict names."""
    options: dict[str, Any] = {"plugin": "zero1"}
    slow = (rank, where, given.slow_ms / 1e3) if where else (-1, "", 0.0)
    results = pool.run(
        2,
        "tests.engine.watched:train",
        timeout_s=600,
        options=options,
        slow=slow,
        work_s=given.work_ms / 1e3,
        steps=given.steps,
    )
    return verdict(columns(results, "phases"), Mesh(dp=2), posting_time(columns(results, "collectives"))).straggler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--work-ms", type=float, default=60.0)
    parser.add_argument("--slow-ms", type=float, default=30.0)
    given = parser.parse_args()
    print(describe_machine())
    with RankPool() as pool:
        for where, phase in CASES.items():
            right, told = 0, []
            for run in range(given.runs):
                found = named(pool, where, run % 2, given)
                answer = None if found is None else (found.rank, found.phase)
                right += answer == ((run % 2, phase) if where else None)
                told.append("none" if found is None else f"{found.rank} {found.phase} {found.lost_share:.0%}")
            print(f"{NAMES[where]:12} right in {right} of {given.runs}: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
