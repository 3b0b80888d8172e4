"""Loops around DeepSpeed's engine, observed: ``torchrun observed_deepspeed.py OUT``, ZeRO stages 0 to 3 one after the
other, each beside the same training of a whole model in float64."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", DS_IGNORE_CUDA_DETECTION="1")

import deepspeed
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

import workbench
from tests.programs.observed_odd import batch
from tests.programs.observed_script import by_layer, network

STEPS, PIECES, LR, TURNED, LOWER = 6, 2, 0.1, 4, 0.05
#: DeepSpeed builds a kernel of its own for processors, with a compiler: it does not need it
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None


def whole_step(whole: torch.nn.Module, step: int, ranks: int, clip: float, lr: float) -> dict[str, Any]:
    """A step of one process over the batches of all ranks."""
    losses = [
        cross_entropy(whole(x.double()), y)
        for x, y in (batch(rank, PIECES * step + piece) for rank in range(ranks) for piece in range(PIECES))
    ]
    loss = torch.stack(losses).mean()
    names = dict(whole.named_parameters())
    found = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
    norm = float(sum(gradient.square().sum() for gradient in found.values()) ** 0.5)
    factor = min(1.0, clip / norm) if clip else 1.0
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.sub_(lr * factor * found[name])
    return {"loss": loss.item(), "lr": lr, "grad_norm": norm, "reduced": by_layer(found)}


def trained(stage: int, rank: int, ranks: int) -> dict[str, Any]:
    """Some steps of a stage, under ``observe``; its rate is lowered on the way, and it is stopped."""
    model = network()
    whole = copy.deepcopy(model).double()
    clip = 0.5 * (stage % 2)
    config = {
        "train_micro_batch_size_per_gpu": 6,
        "gradient_accumulation_steps": PIECES,
        "gradient_clipping": clip,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine, optimizer, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=LR), config=config
    )
    expected = []
    monitor = workbench.MonitorSpec(grad_every=1)
    with workbench.observe(engine, optimizer, name=f"zero-{stage}", monitor=monitor) as run:
        for step in range(10 * STEPS):
            expected.append(whole_step(whole, step, ranks, clip, LR if step < TURNED else LOWER))
            for piece in range(PIECES):
                x, y = batch(rank, PIECES * step + piece)
                engine.backward(cross_entropy(engine(x), y))
                engine.step()
            if rank == 0 and step == TURNED - 2:  # a command applies after the step that begins next
                workbench.Run(run.path).set(lr=LOWER)
            if rank == 0 and step == STEPS - 2:
                workbench.Run(run.path).stop()
            run.step()
    return {"path": str(run.path), "expected": expected}


def main(out: Path) -> None:
    deepspeed.init_distributed("gloo", verbose=False)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found = [trained(stage, rank, ranks) for stage in range(4)]
    if rank == 0:
        (out / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
