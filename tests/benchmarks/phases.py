"""What watching phases and collectives costs: the same ranks train with and without, block by block (A B B A).

Each block is some steps of stdlib-llama on 2 CPU ranks; a pair of neighbouring blocks gives a ratio. Beside it stands
what the watch says of itself (``monitor_ms``), which is what a governor goes by, and what a boundary and a wrapped call
cost alone.

    python tests/benchmarks/phases.py [--plans ddp zero1 tp pp] [--pairs 8] [--steps 15] [--batch-size 8]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import describe_machine
from tests.engine.rank_pool import RankPool

PLANS: dict[str, dict[str, Any]] = {
    "ddp": {"plugin": "ddp"},
    "zero1": {"plugin": "zero1"},
    "tp": {"plugin": "hybrid", "tp": 2},
    "pp": {"plugin": "hybrid", "pp": 2, "micro_batches": 4},
}


def rank_blocks(
    rank: int, ranks: int, directory: Path, *, plan: dict[str, Any], pairs: int, steps: int, batch_size: int
) -> dict[str, Any]:
    """Per pair: milliseconds per step without and with the watch, by the clock and of processor time; and the watch's
    own account, per step."""
    from tests.engine.watched import Log
    from workbench.core.config import TrainSpec
    from workbench.core.recipe import recipe
    from workbench.engine.agree.control import AgreedControl
    from workbench.engine.base.strategy import unmarked
    from workbench.engine.frameworks.colossal.ranks import joined
    from workbench.engine.frameworks.colossal.strategy import ColossalStrategy
    from workbench.engine.frameworks.torch_common.exchange import exchange_of
    from workbench.engine.loop.trainer import Trainer
    from workbench.engine.watch.host.sampler import Progress
    from workbench.engine.watch.torch.phases import PhaseWatch
    from workbench.rundir.directory import CONTROL_FILE

    options = {"recipe": "stdlib-llama", "ranks": ranks, "batch_size": batch_size, "lr": 1e-3, **plan}
    spec = TrainSpec.from_options(options)
    (directory / CONTROL_FILE).touch()
    with joined(rank, ranks, directory, device_type="cpu"):
        workload = recipe("stdlib-llama").build(spec)
        strategy = ColossalStrategy(spec, rank)
        strategy.prepare(workload)
        log = Log()
        trainer = Trainer(
            run=directory,
            spec=spec,
            workload=workload,
            strategy=strategy,
            control=AgreedControl(directory, exchange_of(rank, ranks)),
            log=log,  # type: ignore[arg-type]
            progress=Progress(),
        )
        number = trainer.begin()

        def block() -> tuple[float, float]:
            nonlocal number
            began, busy = time.perf_counter(), time.process_time()
            for _ in range(steps):
                number += 1
                trainer.take_step(number)
                trainer.steering.boundary(number)
            return (time.perf_counter() - began) * 1e3 / steps, (time.process_time() - busy) * 1e3 / steps

        block()
        found, cost = [], []

        def watched_block() -> tuple[float, float]:
            watch = PhaseWatch(spec.monitor, strategy, log)  # type: ignore[arg-type]
            trainer.observers = [watch, watch.step_end]
            before = len(log.records)
            try:
                return block()
            finally:
                cost.extend(r.monitor_ms for r in log.records[before:] if hasattr(r, "monitor_ms"))
                watch.close()
                trainer.observers, strategy.mark = [], unmarked

        for pair in range(pairs):
            if pair % 2:
                watched = watched_block()
                found.append((block(), watched))
            else:
                found.append((block(), watched_block()))
        strategy.close()
    return {"pairs": found, "cost_ms": cost}


def alone() -> str:
    """One boundary."""
    from workbench.engine.watch.torch.phases import _measure_boundary_ms, make_clock

    return f"a boundary between phases costs {_measure_boundary_ms(make_clock('cpu')) * 1e3:.2f} us"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    print(describe_machine())
    print(alone())
    with RankPool() as pool:
        for name in arguments.plans:
            results = pool.run(
                2,
                "tests.benchmarks.phases:rank_blocks",
                timeout_s=600,
                plan=PLANS[name],
                pairs=arguments.pairs,
                steps=arguments.steps,
                batch_size=arguments.batch_size,
            )
            pairs = results[0]["pairs"]
            step_ms = statistics.median(bare[0] for bare, _ in pairs)
            cost_ms = statistics.mean(results[0]["cost_ms"])
            print(
                f"{name:6} {step_ms:6.1f} ms/step   with phases and collectives {ratio(pairs, 0)} by the clock, "
                f"{ratio(pairs, 1)} processor time   own account {cost_ms:.3f} ms ({cost_ms / step_ms:.2%})"
            )


def ratio(pairs: list[Any], which: int) -> str:
    """Of pairs (bare, other): the median ratio and its range, of the clock (0) or the processor (1)."""
    ratios = [watched[which] / bare[which] for bare, watched in pairs]
    return f"{statistics.median(ratios):.3f}x ({min(ratios):.3f} to {max(ratios):.3f})"


if __name__ == "__main__":
    main()
