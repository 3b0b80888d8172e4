"""What agreeing on commands costs a step: ``AgreedControl`` posted and taken, and ``Steering`` asked, over gloo ranks.

The ranks sleep 50 ms where a step would compute; of each step the slowest rank's time in the calls counts. Beside it:
what the calls take one after another, with nothing to hide behind.

Ranks of several hosts (``by_broadcast``) are told in the sum that the guard makes in each step: it is made here too,
and what it takes longer with the message than without counts as well.

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


def measure(rank: int, ranks: int, directory: Path, *, steps: int, by_broadcast: bool) -> dict[str, Any]:
    """On a rank: seconds that the calls took in a step of 50 ms, and when called on their own."""
    import torch.distributed as dist

    from workbench.engine.control import AgreedControl
    from workbench.engine.process_group import joined
    from workbench.engine.steering import Boundary, Steering
    from workbench.rank_log import RankLogWriter

    (directory / "control.jsonl").touch()
    with joined(rank, ranks, directory, device_type="cpu"), RankLogWriter(directory, rank) as log:
        control = AgreedControl(directory, rank, ranks, by_broadcast=by_broadcast)
        nothing: Any = None
        steering = Steering(settings=nothing, acts=nothing, control=control, log=log, enter=lambda phase: None)
        inside, alone = [], []
        sums: dict[bool, list[float]] = {True: [], False: []}
        for number in range(2 * steps if by_broadcast else steps):
            asks = not by_broadcast or number % 2 == 0
            began = time.perf_counter()
            if asks:
                control.post()
            posted = time.perf_counter()
            time.sleep(STEP_S)
            if by_broadcast:
                dist.barrier()
                summing = time.perf_counter()
                control.summed(1.0, 2.0)
                sums[asks].append(time.perf_counter() - summing)
            worked = time.perf_counter()
            here = steering.boundary(number)
            if asks:
                inside.append(posted - began + time.perf_counter() - worked)
            assert here == Boundary(number)
        for number in range(steps):
            began = time.perf_counter()
            control.post()
            steering.boundary(number)
            alone.append(time.perf_counter() - began)
    return {"inside": inside, "alone": alone, "with": sums[True], "without": sums[False]}


def main() -> None:
    from tests.benchmarks.machine import describe_machine
    from tests.engine.rank_pool import RankPool

    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    print(describe_machine())
    with RankPool() as pool:
        for by_broadcast in (False, True):
            options = {"steps": arguments.steps, "by_broadcast": by_broadcast}
            found = pool.run(arguments.ranks, "tests.benchmarks.agreement:measure", timeout_s=300, **options)
            tell("several hosts" if by_broadcast else "one host", found)


def tell(where: str, found: list[dict[str, Any]]) -> None:
    # the slowest rank of each step is what the step costs
    slowest = {name: [max(times) for times in zip(*(rank[name] for rank in found), strict=True)] for name in found[0]}
    cost = statistics.median(slowest["inside"])
    print(f"{where}: called on its own: median {statistics.median(slowest['alone']) * 1e6:.0f} us")
    if slowest["with"]:
        more = [a - b for rank in found for a, b in zip(rank["with"], rank["without"], strict=True)]
        print(f"{where}: the sum takes {statistics.median(more) * 1e6:.0f} us more with the message than without, of "
              f"{statistics.median(slowest['with']) * 1e6:.0f} us")  # fmt: skip
        cost += max(0.0, statistics.median(more))
    ratio = f"{cost / STEP_S:.3%} of a {STEP_S * 1e3:.0f} ms step"
    print(f"{where}: around a step, slowest rank: median {cost * 1e6:.0f} us = {ratio}, goal < {GOAL:.1%}")


if __name__ == "__main__":
    main()
