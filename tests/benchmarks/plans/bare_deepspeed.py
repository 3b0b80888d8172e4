"""A bare DeepSpeed training script for torchrun, as one would write it: the other side of ``plans.py``.

    torchrun --nproc-per-node 2 tests/benchmarks/plans/bare_deepspeed.py --stage 1 --steps 20

It trains the model and data of the recipe stdlib-llama with ZeRO, and prints milliseconds of the median step on rank 0.
On CPU ranks DeepSpeed needs the same repairs that the product uses, so the script applies them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", DS_IGNORE_CUDA_DETECTION="1")

import deepspeed
import torch
import torch.distributed as dist

from tests.benchmarks.bare_common import median_step_ms, work_of


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", type=int, required=True, choices=(1, 2, 3))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    backend: Any = sys.modules["deepspeed.comm.torch"]
    backend.build_shm_op = lambda: None  # it would be compiled for minutes
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    work = work_of(ranks, arguments.batch_size, arguments.steps)
    config = {
        "train_micro_batch_size_per_gpu": arguments.batch_size // ranks,
        "zero_optimization": {"stage": arguments.stage},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=work.model, optimizer=work.optimizer, config=config)
    batches, ends = work.data.batches(rank, ranks), []
    for _ in range(arguments.steps):
        batch = next(batches)
        engine.backward(work.criterion(engine(**batch), batch))
        engine.step()
        ends.append(time.perf_counter())
    if rank == 0:
        print(median_step_ms(ends), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
