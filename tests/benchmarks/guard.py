"""What deciding about numbers that are not finite costs a step in which all are finite: 2 and 4 gloo ranks, ddp.

    python tests/benchmarks/guard.py [--steps 200]

Steps with and without the guard alternate (the state of the random generators is taken, and one small all-reduce comes
before the optimizer's step), and their medians are compared. The guard's own clock also counts the wait for a slower
rank, which without it would happen at the next collective. Beside it: such an all-reduce right after a barrier.
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
    """Milliseconds per step with and without the guard, by the guard's clock, and of a bare all-reduce."""
    from workbench.core.config import TrainSpec
    from workbench.core.recipe import recipe
    from workbench.engine.agree.control import AgreedControl
    from workbench.engine.base.workload import Workload
    from workbench.engine.faults.nonfinite import NonfiniteGuard
    from workbench.engine.frameworks.colossal.ranks import joined
    from workbench.engine.frameworks.colossal.strategy import ColossalStrategy
    from workbench.engine.frameworks.torch_common.exchange import exchange_of
    from workbench.rundir.directory import CONTROL_FILE
    from workbench.rundir.log import RankLogWriter

    options = {"ranks": ranks, "plugin": "ddp", "batch_size": 8 * ranks, "recipe": "stdlib-llama"}
    spec = TrainSpec.from_options(options)
    torch.set_num_threads(1)
    with joined(rank, ranks, directory, device_type="cpu"), RankLogWriter(directory, rank) as log:
        work: Workload = recipe("stdlib-llama").build(spec)
        strategy = ColossalStrategy(spec, rank)
        strategy.prepare(work)
        (directory / CONTROL_FILE).touch()
        control = AgreedControl(directory, exchange_of(rank, ranks))
        guard = NonfiniteGuard(directory, strategy, log, control, work.data)
        batches, guard_ms = work.data.batches(rank, ranks), []
        step_ms: dict[bool, list[float]] = {True: [], False: []}
        for step in range(1, steps + 1):
            batch = next(batches)
            began = time.perf_counter()
            guarded = step % 2 == 0
            guard.begins(step, 0)
            if guarded:
                guard.batch(step, batch)
            loss = strategy.forward_backward([batch])
            grad_sq = strategy.grad_sq()
            if guarded:
                assert guard.decide(step, loss, grad_sq) == "go"
                guard_ms.append(guard.cost_ms)
            strategy.step()
            step_ms[guarded].append((time.perf_counter() - began) * 1e3)
        flag, bare_ms = torch.zeros(1, dtype=torch.int32), []
        for _ in range(steps):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(flag)
            bare_ms.append((time.perf_counter() - began) * 1e3)
        strategy.close()
    middle = {"with": step_ms[True], "without": step_ms[False], "guard": guard_ms, "bare": bare_ms}
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
            ratio = mean["with"] / mean["without"]
            print(f"{ranks} ranks: a step with the guard {mean['with']:.1f} ms, without {mean['without']:.1f} ms: "
                  f"{ratio:.3f}x (goal <= {1 + GOAL}x); by its clock {mean['guard']:.2f} ms, "
                  f"a bare all-reduce {mean['bare']:.3f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
