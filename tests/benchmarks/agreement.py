"""What agreeing on commands costs a step: ``AgreedControl`` posted and taken, and ``Steering`` asked, over gloo ranks.

The ranks sleep 50 ms where a step would compute; of each step the slowest rank's time in the calls counts. Beside it:
what the calls take one after another, with nothing to hide behind. Then what a rank takes of a core while it is paused.

Ranks of several hosts are told with the sum that the guard makes in each step: in every second step it is made that
way, in the others as a plain reduction, and what it takes longer counts as well.

    python tests/benchmarks/agreement.py [--ranks 2] [--steps 200]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

STEP_S = 0.05
GOAL = 0.002
PAUSE_S = 6.0
PAUSED_GOAL = 0.01
SUMS = ("agreed", "reduced")


def measure(rank: int, ranks: int, directory: Path, *, steps: int, one_host: bool) -> dict[str, list[float]]:
    """On a rank: seconds that the calls took in a step of 50 ms, and when called on their own; of several hosts also
    what the step's sum took, on the clock and of all threads' processor time."""
    import torch
    import torch.distributed as dist

    from workbench.engine.agree.control import AgreedControl
    from workbench.engine.frameworks.colossal.ranks import joined
    from workbench.engine.frameworks.torch_common.exchange import exchange_of
    from workbench.engine.loop.steering import Steering
    from workbench.rundir.log import RankLogWriter

    (directory / "control.jsonl").touch()
    found: dict[str, list[float]] = {
        name: [] for name in ("inside", "alone", *SUMS, *(f"{name}, cpu" for name in SUMS))
    }

    def took(name: str, call: Callable[[], Any]) -> None:
        dist.barrier()
        began, cpu = time.perf_counter(), time.process_time()
        call()
        found[name].append(time.perf_counter() - began)
        found[f"{name}, cpu"].append(time.process_time() - cpu)

    with joined(rank, ranks, directory, device_type="cpu"), RankLogWriter(directory, rank) as log:
        control = AgreedControl(directory, exchange_of(rank, ranks), one_host=one_host)
        no_loop: Any = None
        no_knobs: Any = SimpleNamespace(knobs=())
        steering = Steering(settings=no_knobs, loop=no_loop, control=control, log=log, enter=lambda phase: None)
        both, others = torch.zeros(2, dtype=torch.float64), dist.new_group(backend="gloo")
        for number in range(steps):
            began = time.perf_counter()
            control.post()
            posted = time.perf_counter()
            time.sleep(STEP_S)
            if not one_host:
                took("agreed", lambda: control.summed(1.0, 2.0))
            worked = time.perf_counter()
            here = steering.boundary(number)
            found["inside"].append(posted - began + time.perf_counter() - worked)
            assert (here.step, here.stop) == (number, False)
            if not one_host:
                time.sleep(STEP_S)
                took("reduced", lambda: dist.all_reduce(both, group=others))
        for number in range(steps):
            began = time.perf_counter()
            control.post()
            steering.boundary(number)
            found["alone"].append(time.perf_counter() - began)
    return {name: seconds for name, seconds in found.items() if seconds}


def pause(rank: int, ranks: int, directory: Path, *, one_host: bool) -> float:
    """On a rank: the share of a core that it used during a pause of ``PAUSE_S`` seconds."""
    from workbench.engine.agree.control import HEARTBEAT_S, AgreedControl
    from workbench.engine.frameworks.colossal.ranks import joined
    from workbench.engine.frameworks.torch_common.exchange import exchange_of

    (directory / "control.jsonl").touch()
    with joined(rank, ranks, directory, device_type="cpu"):
        control = AgreedControl(directory, exchange_of(rank, ranks), one_host=one_host)
        control.wait()
        began, cpu = time.monotonic(), time.process_time()
        for _ in range(round(PAUSE_S / HEARTBEAT_S)):
            control.wait()
        return (time.process_time() - cpu) / (time.monotonic() - began)


def main() -> None:
    from tests.benchmarks.machine import describe_machine
    from tests.engine.rank_pool import RankPool

    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    print(describe_machine())
    with RankPool() as pool:
        for one_host in (True, False):
            options = {"steps": arguments.steps, "one_host": one_host}
            found = pool.run(arguments.ranks, "tests.benchmarks.agreement:measure", timeout_s=300, **options)
            where = "one host" if one_host else "several hosts"
            tell(where, found)
            shares = pool.run(arguments.ranks, "tests.benchmarks.agreement:pause", one_host=one_host)
            print(f"{where}: of a core while paused, busiest rank: {max(shares):.2%}, goal < {PAUSED_GOAL:.0%}")


def tell(where: str, found: list[dict[str, list[float]]]) -> None:
    """Print medians over the steps; of each step the slowest rank counts."""
    us = {
        name: statistics.median(map(max, zip(*(rank[name] for rank in found), strict=True))) * 1e6 for name in found[0]
    }
    cost = us["inside"]
    print(f"{where}: called on its own: median {us['alone']:.0f} us")
    if "agreed" in us:
        agreed, reduced = (f"{us[name]:.0f} us ({us[f'{name}, cpu']:.0f} of the processor)" for name in SUMS)
        print(f"{where}: a step's sum with what is agreed: median {agreed}, as a reduction without {reduced}")
        cost += max(0.0, us["agreed"] - us["reduced"])
    ratio = f"{cost * 1e-6 / STEP_S:.3%} of a {STEP_S * 1e3:.0f} ms step"
    print(f"{where}: around a step, slowest rank: median {cost:.0f} us = {ratio}, goal < {GOAL:.1%}")


if __name__ == "__main__":
    main()
