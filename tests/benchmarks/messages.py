"""What it costs a step of a cell that ranks agree over what a loss was averaged and which parameters were used.

A cell may average over labels that ranks have unequally many of, take a branch on one rank only, and change weights in
place, so ranks tell each other in each step. On two CPU ranks stdlib-llama is trained as a cell is, and without any of
that: DDP does not look for unused parameters, ZeRO takes all for used, each rank takes its own count for everybody's.
Block by block (A B B A); a pair of neighbouring blocks gives a ratio.

    python tests/benchmarks/messages.py [--plans ddp accumulate zero1 zero2] [--pairs 8] [--steps 15] [--batch-size 8]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.phases import ratio
from tests.engine.rank_pool import RankPool

PLANS: dict[str, dict[str, Any]] = {
    "ddp": {"plugin": "ddp"},
    "accumulate": {"plugin": "ddp", "accumulate": 2},
    "zero1": {"plugin": "zero1"},
    "zero2": {"plugin": "zero2"},
}


def rank_blocks(
    rank: int, ranks: int, directory: Path, *, plan: dict[str, Any], pairs: int, steps: int, batch_size: int
) -> list[Any]:
    """Per pair: milliseconds per step without and with the messages, by the clock and of processor time."""
    from tests.engine.watched import Log
    from workbench.core.config import TrainSpec
    from workbench.core.recipe import recipe
    from workbench.engine.agree.control import AgreedControl
    from workbench.engine.frameworks.colossal.ranks import joined
    from workbench.engine.frameworks.colossal.strategy import ColossalStrategy
    from workbench.engine.frameworks.colossal.zero.reduction import ZeroReduction
    from workbench.engine.frameworks.torch_common.exchange import exchange_of
    from workbench.engine.frameworks.torch_common.losses.average import LossAverage
    from workbench.engine.loop.trainer import Trainer
    from workbench.engine.watch.host.sampler import Progress
    from workbench.rundir.directory import CONTROL_FILE

    options = {"ranks": ranks, "batch_size": batch_size, "lr": 1e-3, **plan}
    (directory / CONTROL_FILE).touch()

    def alone(average: LossAverage, counts: list[Any]) -> list[Any]:
        return [each * ranks for each in counts]

    def own_places(average: LossAverage, new: list[int]) -> None:
        average._places |= {site: place for place, site in enumerate(new, len(average._places))}

    def all_used(reduction: ZeroReduction, loss: Any) -> None:
        reduction._afterwards = not (reduction._while_backward and reduction._optimizer.require_grad_sync)
        reduction._waiting, reduction._computed = deque(reversed(reduction._parameters)), set()

    with joined(rank, ranks, directory, device_type="cpu"):
        trainers, number = [], [0, 0]
        for as_recipe in (True, False):
            spec = TrainSpec.from_options({**options, **({"recipe": "stdlib-llama"} if as_recipe else {})})
            workload = recipe("stdlib-llama").build(TrainSpec.from_options({**options, "recipe": "stdlib-llama"}))
            strategy = ColossalStrategy(spec, rank)
            strategy.prepare(workload)
            trainer = Trainer(
                run=directory,
                spec=spec,
                workload=workload,
                strategy=strategy,
                control=AgreedControl(directory, exchange_of(rank, ranks)),
                log=Log(),  # type: ignore[arg-type]
                progress=Progress(),
            )
            number[len(trainers)] = trainer.begin()
            trainers.append(trainer)

        def block(which: int) -> tuple[float, float]:
            trainer = trainers[which]
            began, busy = time.perf_counter(), time.process_time()
            for _ in range(steps):
                number[which] += 1
                trainer.take_step(number[which])
                trainer.steering.boundary(number[which])
            return (time.perf_counter() - began) * 1e3 / steps, (time.process_time() - busy) * 1e3 / steps

        def bare() -> tuple[float, float]:
            with (
                patch.object(LossAverage, "_summed", alone),
                patch.object(LossAverage, "_give_places", own_places),
                patch.object(ZeroReduction, "before_backward", all_used),
            ):
                return block(0)

        bare(), block(1)
        found = []
        for pair in range(pairs):
            if pair % 2:
                told = block(1)
                found.append((bare(), told))
            else:
                found.append((bare(), block(1)))
        for trainer in trainers:
            trainer.strategy.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    print(describe_machine())
    options = {"pairs": arguments.pairs, "steps": arguments.steps, "batch_size": arguments.batch_size}
    with RankPool() as pool:
        for name in arguments.plans:
            call = "tests.benchmarks.messages:rank_blocks"
            found = pool.run(2, call, timeout_s=600, plan=PLANS[name], **options)[0]
            step_ms = statistics.median(bare[0] for bare, _ in found)
            print(f"{name:10} {step_ms:6.1f} ms/step   with messages {ratio(found, 0)} by the clock, "
                  f"{ratio(found, 1)} processor time")  # fmt: skip


if __name__ == "__main__":
    main()
