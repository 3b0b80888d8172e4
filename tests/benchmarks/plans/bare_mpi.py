"""A bare data-parallel training script for mpiexec, as one would write it with mpi4py: the other side of
``tests/benchmarks/plans.py``.

    mpiexec -n 2 python tests/benchmarks/plans/bare_mpi.py --steps 20

It trains the model and data of the recipe stdlib-llama, averages all gradients in one buffer after the backward pass,
and prints milliseconds of the median step on rank 0.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
from mpi4py import MPI

from tests.benchmarks.bare_common import median_step_ms, work_of


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    world = MPI.COMM_WORLD
    work = work_of(world.size, arguments.batch_size, arguments.steps)
    parameters = [parameter for parameter in work.model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        world.Bcast(parameter.detach().numpy())
    work.model.train()
    batches, ends = work.data.batches(world.rank, world.size), []
    for _ in range(arguments.steps):
        batch = next(batches)
        work.criterion(work.model(**batch), batch).backward()
        buffer = torch.cat([parameter.grad.flatten() for parameter in parameters])
        world.Allreduce(MPI.IN_PLACE, buffer.numpy())
        buffer /= world.size
        for parameter, part in zip(parameters, buffer.split([each.numel() for each in parameters]), strict=True):
            parameter.grad.copy_(part.view_as(parameter))
        work.optimizer.step()
        work.optimizer.zero_grad()
        ends.append(time.perf_counter())
    if world.rank == 0:
        print(median_step_ms(ends), flush=True)


if __name__ == "__main__":
    main()
