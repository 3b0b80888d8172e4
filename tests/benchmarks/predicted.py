"""What the performance model of ``%dist_lab`` predicts beside what trainings on emulated networks take.

For each number of ranks, costs are read from a training without an emulated network, and the time of a step is
predicted on others; then it trains on these. Prints a row for each, and the largest error.

    python tests/benchmarks/predicted.py [--ranks 2 4] [--rounds 3] [--algorithms ddp,bf16,topk:0.01+ef,local-sgd:4]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile

import workbench
from tests.benchmarks.machine import describe_machine
from workbench.core import algorithms as known
from workbench.core.network import read
from workbench.run.lab.step_cost import read_cost

NETWORKS = ("1Gbit,1ms", "100Mbit,20ms")
#: steps that pay for what is paid once
FIRST = 3


def trained(algorithm: str, ranks: int, steps: int, network: str) -> workbench.Run:
    """A run that has ended."""
    options = {"recipe": "stdlib-llama", "ranks": ranks, "framework": "torch", "plugin": "ddp", "network": network}
    options |= {"algorithm": "" if algorithm == "ddp" else algorithm, "steps": steps, "batch_size": 4 * ranks}
    run = workbench.train({**options, "eval_every": 0, "final_checkpoint": False})
    run.wait()
    run.raise_if_failed()
    return run


def step_s(run: workbench.Run) -> float:
    """The time of a step: the mean where only some exchange weights, else the median."""
    metrics = run.metrics()
    times = metrics[metrics["step"] > FIRST]["step_time_ms"] / 1e3
    return float(times.mean() if known.is_local(run.plan.algorithm) else times.median())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3, help="each is trained so often, in turn; medians are compared")
    parser.add_argument("--algorithms", default="ddp,bf16,topk:0.01+ef,local-sgd:4")
    given = parser.parse_args()
    print(describe_machine())
    print(f"{'ranks':>5} {'algorithm':<14} {'network':<14} {'predicted':>10} {'measured':>10} {'error':>7}")
    worst = 0.0
    with tempfile.TemporaryDirectory() as home:
        os.environ["WORKBENCH_HOME"] = home
        for ranks in given.ranks:
            for algorithm in given.algorithms.split(","):
                found: dict[str, list[tuple[float, float]]] = {network: [] for network in NETWORKS}
                for _ in range(given.rounds):
                    cost = read_cost(trained(algorithm, ranks, given.steps, ""))
                    assert cost is not None
                    for network, pairs in found.items():
                        pairs.append(
                            (cost.step_s(read(network)), step_s(trained(algorithm, ranks, given.steps, network)))
                        )
                for network, pairs in found.items():
                    predicted, measured = (statistics.median(values) for values in zip(*pairs, strict=True))
                    error = predicted / measured - 1
                    worst = max(worst, abs(error))
                    shown = f"{1e3 * predicted:>7.0f} ms {1e3 * measured:>7.0f} ms {100 * error:>6.0f}%"
                    print(f"{ranks:>5} {algorithm:<14} {network:<14} {shown}", flush=True)
        workbench.Session.current().down()
    print(f"largest error: {100 * worst:.0f}%")


if __name__ == "__main__":
    main()
