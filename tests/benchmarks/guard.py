"""What deciding about numbers that are not finite costs a step in which all are finite: 2 and 4 gloo ranks, ddp.

    python tests/benchmarks/guard.py [--steps 200]

The trainer runs with the guard; its own clock says what it cost (the state of the random generators, and the one small
all-reduce before the optimizer's step). Beside it: the same all-reduce right after a barrier, which is its latency.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.benchmarks.machine import describe_machine
from tests.engine.rank_pool import RankPool

GOAL = 0.01


def measure(rank: int, ranks: int, directory: Path, *, steps: int) -> dict[str, Any]:
    """Milliseconds per step, of the guard per step, and of a bare all-reduce."""
    from workbench.config import TrainSpec
    from workbench.engine.nonfinite import NonfiniteGuard
    from workbench.engine.process_group import joined
    from workbench.engine.strategies.colossal import ColossalStrategy
    from workbench.engine.workload import Workload
    from workbench.rank_log import RankLogWriter
    from workbench.recipes.base import recipe

    options = {"ranks": ranks, "plugin": "ddp", "batch_size": 8 * ranks, "recipe": "stdlib-llama"}
    spec = TrainSpec.from_options(options)
    torch.set_num_threads(1)
    with joined(rank, ranks, directory, device_type="cpu"), RankLogWriter(directory, rank) as log:
        work: Workload = recipe("stdlib-llama").build(spec)
        strategy = ColossalStrategy(spec, rank)
        strategy.prepare(work)
        guard = NonfiniteGuard(directory, spec, strategy, log, work.data)
        batches, step_ms, guard_ms = work.data.batches(rank, ranks), [], []
        for step in range(1, steps + 1):
            batch = next(batches)
            began = time.perf_counter()
            guard.begins(step, 0)
            guard.batch(step, batch)
            loss = strategy.forward_backward([batch])
            assert guard.decide(step, loss, strategy.grad_sq()) == "go"
            strategy.step()
            step_ms.append((time.perf_counter() - began) * 1e3)
            guard_ms.append(guard.cost_ms)
        flag, bare_ms = torch.zeros(1, dtype=torch.int32), []
        for _ in range(steps):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(flag)
            bare_ms.append((time.perf_counter() - began) * 1e3)
        strategy.close()
    middle = {"step": step_ms, "guard": guard_ms, "bare": bare_ms}
    return {name: statistics.median(values[5:]) for name, values in middle.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    print(describe_machine())
    with RankPool() as pool:
        for ranks in (2, 4):
            found = pool.run(ranks, "tests.benchmarks.guard:measure", timeout_s=300, steps=arguments.steps)
            mean = {name: statistics.mean(one[name] for one in found) for name in found[0]}
            print(f"{ranks} ranks: guard {mean['guard']:.3f} ms of a step of {mean['step']:.1f} ms: "
                  f"{mean['guard'] / mean['step']:.2%} (goal < {GOAL:.0%}); "
                  f"a bare all-reduce {mean['bare']:.3f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
