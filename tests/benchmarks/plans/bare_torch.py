"""A bare PyTorch training script for torchrun, as one would write it: the other side of ``tests/benchmarks/plans.py``.

    torchrun --nproc-per-node 2 tests/benchmarks/plans/bare_torch.py --plan tp --steps 20

It trains the model and data of the recipe stdlib-llama with DistributedDataParallel, FSDP2, DTensor's tensor
parallelism or torch.distributed.pipelining, and prints milliseconds of the median step on rank 0.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import pipelining
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tests.benchmarks.bare_common import median_step_ms, work_of


class _Stage(torch.nn.Module):
    """The blocks of one pipeline stage of a Llama, with the embedding on the first one and the head on the last."""

    def __init__(self, model: Any, stage: int, stages: int) -> None:
        super().__init__()
        layers = model.model.layers
        first, end = (number * len(layers) // stages for number in (stage, stage + 1))
        self.embed: Any = model.model.embed_tokens if stage == 0 else None
        self.layers = torch.nn.ModuleList(layers[first:end])
        self.norm: Any = model.model.norm if stage == stages - 1 else None
        self.head: Any = model.lm_head if stage == stages - 1 else None
        self.rotary = model.model.rotary_emb

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden if self.embed is None else self.embed(hidden)
        positions = torch.arange(hidden.shape[1])[None]
        turns = self.rotary(hidden, positions)
        for layer in self.layers:
            hidden = layer(hidden, position_ids=positions, position_embeddings=turns)[0]
        return hidden if self.head is None else self.head(self.norm(hidden))


def remade(optimizer: torch.optim.Optimizer, model: torch.nn.Module, **options: Any) -> torch.optim.Optimizer:
    """The same optimizer for the parameters that a model has after it was split."""
    same = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
    return type(optimizer)(model.parameters(), **same, **options)


def whole(plan: str, work: Any) -> Callable[[Any], None]:
    """Forward and backward of ddp, fsdp and tp, whose ranks compute all layers."""
    model = work.model
    if plan == "ddp":
        model = DistributedDataParallel(model)
    elif plan == "fsdp":
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        work.optimizer = remade(work.optimizer, model)
    else:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        styles: dict[str, Any] = {
            f"model.layers.*.{name}": ColwiseParallel()
            for name in (*(f"self_attn.{each}_proj" for each in "qkv"), "mlp.gate_proj", "mlp.up_proj")
        }
        styles |= {f"model.layers.*.{name}": RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}
        styles["model.embed_tokens"] = RowwiseParallel(input_layouts=Replicate())
        styles["lm_head"] = ColwiseParallel(output_layouts=Replicate())
        parallelize_module(model, mesh, styles)
        work.optimizer = remade(work.optimizer, model, foreach=False)
    model.train()

    def run(batch: Any) -> None:
        work.criterion(model(**batch), batch).backward()

    return run


def pipeline(work: Any, rank: int, ranks: int, micro_batches: int) -> Callable[[Any], None]:
    """Forward and backward of a pipeline under 1F1B."""
    stage = _Stage(work.model, rank, ranks)
    stage.train()
    work.optimizer = remade(work.optimizer, stage)
    held = pipelining.PipelineStage(stage, rank, ranks, torch.device("cpu"))

    def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    schedule = pipelining.Schedule1F1B(held, micro_batches, loss_fn=loss_of)

    def run(batch: Any) -> None:
        given = (batch["input_ids"],) if rank == 0 else ()
        schedule.step(*given, target=batch["labels"] if rank == ranks - 1 else None)

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", required=True, choices=("ddp", "fsdp", "tp", "pp"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    work = work_of(ranks, arguments.batch_size, arguments.steps)
    if arguments.plan == "pp":
        run, replica, replicas = pipeline(work, rank, ranks, ranks), 0, 1
    else:
        run = whole(arguments.plan, work)
        replica, replicas = (0, 1) if arguments.plan == "tp" else (rank, ranks)
    batches, ends = work.data.batches(replica, replicas), []
    for _ in range(arguments.steps):
        run(next(batches))
        work.optimizer.step()
        work.optimizer.zero_grad()
        ends.append(time.perf_counter())
    if rank == 0:
        print(median_step_ms(ends), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
