"""How often the verdict names the right rank: runs with a planted slow rank, a planted slow network, and none.

Each run trains a small model under ZeRO on 2 CPU ranks; every forward pass takes ``--work-ms``. A first run without a
delay measures the step time. The slow rank then needs ``--slow-share`` of a step more in its forward pass, or as long
more to hand over each message. Which rank is slow changes from run to run. Without a slow rank the right answer is to
name none.

    python -m tests.benchmarks.stragglers [--runs 10] [--steps 60] [--work-ms 60] [--slow-share 0.25]
"""

from __future__ import annotations

import argparse
from typing import Any

from tests.benchmarks.machine import describe_machine
from tests.engine.frames import columns
from tests.engine.rank_pool import RankPool
from workbench.core.mesh import Mesh
from workbench.telemetry.phases import posting_time
from workbench.telemetry.verdict import Verdict, verdict

#: what is planted -> the phase that is to be named
CASES = {"forward": "forward", "network": "communication", "": ""}
NAMES = {"forward": "slow rank", "network": "slow network", "": "none"}


def judge(pool: RankPool, where: str, rank: int, delay_s: float, given: argparse.Namespace) -> Verdict:
    """Train once with a delay ``where`` ("": none) on ``rank``, and return the verdict."""
    options: dict[str, Any] = {"plugin": "zero1"}
    slow = (rank, where, delay_s) if where else (-1, "", 0.0)
    results = pool.run(
        2,
        "tests.engine.watched:train",
        timeout_s=600,
        options=options,
        slow=slow,
        work_s=given.work_ms / 1e3,
        steps=given.steps,
    )
    return verdict(columns(results, "phases"), Mesh(dp=2), posting_time(columns(results, "collectives")))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--work-ms", type=float, default=60.0)
    parser.add_argument("--slow-share", type=float, default=0.25)
    given = parser.parse_args()
    print(describe_machine())
    with RankPool() as pool:
        step_ms = judge(pool, "", 0, 0.0, given).step_ms
        delay_s = given.slow_share * step_ms / 1e3
        print(f"a step takes {step_ms:.0f} ms, the planted delay is {1e3 * delay_s:.0f} ms")
        for where, phase in CASES.items():
            right, told = 0, []
            for run in range(given.runs):
                found = judge(pool, where, run % 2, delay_s, given).straggler
                answer = None if found is None else (found.rank, found.phase)
                right += answer == ((run % 2, phase) if where else None)
                told.append("none" if found is None else f"{found.rank} {found.phase} {found.lost_share:.0%}")
            print(f"{NAMES[where]:12} right in {right} of {given.runs}: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
