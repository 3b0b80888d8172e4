"""What agreeing on commands costs a step: ``AgreedControl`` posted and taken, and ``Steering`` asked, over gloo ranks.

The ranks sleep 50 ms where a step would compute; of each step the slowest rank's time in the calls counts. Beside it:
what the calls take one after another, with nothing to hide behind.

    python tests/benchmarks/agreement.py [--ranks 2] [--steps 200]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

STEP_S = 0.05
GOAL = 0.002


def measure(rank: int, ranks: int, directory: Path, *, steps: int) -> dict[str, Any]:
    """On a rank: seconds that the calls took in a step of 50 ms, and when called on their own."""
    from workbench.engine.control import AgreedControl
    from workbench.engine.process_group import joined
    from workbench.engine.steering import Boundary, Steering
    from workbench.rank_log import RankLogWriter

    (directory / "control.jsonl").touch()
    with joined(rank, ranks, directory, device_type="cpu"), RankLogWriter(directory, rank) as log:
        control = AgreedControl(directory, rank, ranks)
        nothing: Any = None
        steering = Steering(settings=nothing, acts=nothing, control=control, log=log, enter=lambda phase: None)
        inside, alone = [], []
        for number in range(steps):
            began = time.perf_counter()
            control.post()
            posted = time.perf_counter()
            time.sleep(STEP_S)
            worked = time.perf_counter()
            here = steering.boundary(number)
            inside.append(posted - began + time.perf_counter() - worked)
            assert here == Boundary(number)
        for number in range(steps):
            began = time.perf_counter()
            control.post()
            steering.boundary(number)
            alone.append(time.perf_counter() - began)
    return {"inside": inside, "alone": alone}


def main() -> None:
    from tests.benchmarks.machine import describe_machine
    from tests.engine.rank_pool import RankPool

    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    print(describe_machine())
    with RankPool() as pool:
        found = pool.run(arguments.ranks, "tests.benchmarks.agreement:measure", steps=arguments.steps)
    # the slowest rank of each step is what the step costs
    inside = [max(times) for times in zip(*(rank["inside"] for rank in found), strict=True)]
    alone = [max(times) for times in zip(*(rank["alone"] for rank in found), strict=True)]
    cost = statistics.median(inside)
    print(f"called on its own: median {statistics.median(alone) * 1e6:.0f} us")
    ratio = f"{cost / STEP_S:.3%} of a {STEP_S * 1e3:.0f} ms step"
    print(f"around a step, slowest rank: median {cost * 1e6:.0f} us = {ratio}, goal < {GOAL:.1%}")


if __name__ == "__main__":
    main()
