"""A bare Colossal-AI training script for torchrun, as one would write it: the other side of the benchmarks.

    torchrun --nproc-per-node 2 tests/benchmarks/bare.py [--plugin hybrid] --tp 2 --steps 50

It trains the model and data of the recipe stdlib-llama and prints, in milliseconds, the median step by the clock, and
the means of a step by the clock and of rank 0's processor time. On CPU ranks Colossal-AI needs the same accelerator and
repairs that the product uses, so the script applies them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import colossalai
import torch
import torch.distributed as dist
from colossalai.accelerator import set_accelerator
from colossalai.booster import Booster
from colossalai.booster.plugin import HybridParallelPlugin, LowLevelZeroPlugin, TorchDDPPlugin

from workbench.core.config import ParallelPlan, TrainSpec
from workbench.core.recipe import recipe
from workbench.engine.frameworks.colossal import repairs
from workbench.engine.frameworks.colossal.startup.gloo_accelerator import GlooAccelerator


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plugin", default="hybrid", choices=("ddp", "zero1", "zero2", "hybrid"))
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--stamp", type=Path, help="write the time of the first step's end here (rank 0)")
    return parser.parse_args()


def plugin_for(plan: ParallelPlan) -> Any:
    if plan.plugin == "ddp":
        return TorchDDPPlugin()
    if plan.plugin in ("zero1", "zero2"):
        return LowLevelZeroPlugin(stage=int(plan.plugin[-1]), precision="fp32", overlap_communication=False)
    micro_batches = plan.micro_batches if plan.pp > 1 else None
    return HybridParallelPlugin(tp_size=plan.tp, pp_size=plan.pp, num_microbatches=micro_batches, precision="fp32",
                                zero_stage=0)  # fmt: skip


def stepper(spec: TrainSpec, rank: int) -> Iterator[None]:
    """One optimizer step at each ``next``."""
    plan = spec.plan
    work = recipe("stdlib-llama").build(spec)
    booster = Booster(plugin=plugin_for(plan))
    model, optimizer, criterion, _, scheduler = booster.boost(
        work.model, work.optimizer, criterion=work.criterion, lr_scheduler=work.lr_scheduler
    )
    model.train()
    for batch in work.data.batches(plan.mesh.coordinates(rank).dp, plan.mesh.dp):
        forward_backward(booster, model, criterion, optimizer, batch, pipeline=plan.pp > 1)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        yield


def forward_backward(
    booster: Booster, model: Any, criterion: Callable[..., Any], optimizer: Any, batch: Any, *, pipeline: bool
) -> None:
    if pipeline:
        booster.execute_pipeline(iter([batch]), model, criterion, optimizer, return_loss=True)
    else:
        booster.backward(criterion(model(**batch), batch), optimizer)


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    set_accelerator(GlooAccelerator())
    repairs.apply("cpu")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    colossalai.launch(rank, world_size, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), verbose=False)
    plan = ParallelPlan(ranks=world_size, plugin=arguments.plugin, tp=arguments.tp, pp=arguments.pp,
                        micro_batches=arguments.pp)  # fmt: skip
    spec = TrainSpec.from_options({
        **recipe("stdlib-llama").defaults["tiny"], "recipe": "stdlib-llama", "size": "tiny", **vars(plan),
        "batch_size": arguments.batch_size, "steps": arguments.steps,
    })  # fmt: skip
    steps = stepper(spec, rank)
    ends, spent = [], []
    for number in range(arguments.steps):
        next(steps)
        ends.append(time.time())
        spent.append(time.process_time())
        if number == 0 and arguments.stamp is not None and rank == 0:
            arguments.stamp.write_text(repr(ends[0]))
    if rank == 0 and len(ends) > 10:
        median_ms = 1e3 * statistics.median(end - begin for begin, end in pairwise(ends[9:]))
        steps_ms = [(times[-1] - times[9]) / (len(times) - 10) * 1e3 for times in (ends, spent)]
        print(median_ms, *steps_ms, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
