"""A training script of somebody else's, with the two lines that observe it: ``torchrun observed_script.py MODE OUT``.

MODE ``values`` computes, beside the training, what the run should show, by hand in float64. ``steered`` trains until it
is stopped. ``apart`` leaves ``run.step`` on rank 1 out after three steps. ``fails`` raises on rank 0.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import workbench

STEPS, PIECES, CLIP, LR = 12, 2, 0.1, 1e-2
LIMITS = {"values": STEPS, "apart": 60, "fails": 5, "steered": 100_000}


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))


def batches(rank: int) -> Any:
    generator = torch.Generator().manual_seed(100 + rank)
    while True:
        yield [
            (torch.randn(6, 8, generator=generator), torch.randint(0, 4, (6,), generator=generator))
            for _ in range(PIECES)
        ]


def by_hand(model: torch.nn.Module, pieces: Any) -> dict[str, Any]:
    """Local gradients and loss of this rank, and their means over the ranks, in float64."""
    exact = copy.deepcopy(model).double()
    loss = sum(cross_entropy(exact(x.double()), y) / PIECES for x, y in pieces)
    local = dict(zip(dict(exact.named_parameters()), torch.autograd.grad(loss, list(exact.parameters())), strict=True))
    reduced = {name: gradient.clone() for name, gradient in local.items()}
    mean = loss.detach().clone()
    if dist.is_initialized():
        for gradient in [*reduced.values(), mean]:
            dist.all_reduce(gradient)
            gradient.div_(dist.get_world_size())
    return {
        "loss": float(mean),
        "grad_norm": float(sum(gradient.square().sum() for gradient in reduced.values()) ** 0.5),
        "local": by_layer(local),
        "reduced": by_layer(reduced),
    }


def by_layer(gradients: dict[str, torch.Tensor]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, gradient in gradients.items():
        layer = name.rpartition(".")[0]
        found[layer] = found.get(layer, 0.0) + float(gradient.square().sum())
    return {layer: square**0.5 for layer, square in found.items()}


def has_command(run: Path) -> bool:
    """Whether somebody has asked for something."""
    file = run / "control.jsonl"
    return file.exists() and file.stat().st_size > 0


def main(mode: str, out: Path) -> None:
    rank = 0
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        rank = dist.get_rank()
    model = network()
    net = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5 if mode == "values" else 1.0)
    expected = []
    monitor = workbench.MonitorSpec(grad_every=1 if mode == "values" else None)
    timeout_s = 15.0 if mode == "apart" else 60.0

    def save(step: int) -> Path:
        path = out / f"{step}-{rank}.pt"
        torch.save(model.state_dict(), path)
        return path

    with workbench.observe(
        net, optimizer, name=mode, steps=LIMITS[mode], monitor=monitor, timeout_s=timeout_s, on_checkpoint=save
    ) as run:
        (out / f"run-{rank}").write_text(str(run.path))
        for step, pieces in zip(range(LIMITS[mode]), batches(rank), strict=False):
            expected.append({"lr": schedule.get_last_lr()[0], **(by_hand(model, pieces) if mode == "values" else {})})
            optimizer.zero_grad()
            for index, (x, y) in enumerate(pieces):
                if dist.is_initialized():
                    net.require_backward_grad_sync = index == PIECES - 1
                (cross_entropy(net(x), y) / PIECES).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            if mode == "fails" and step == 3 and rank == 0:
                raise ValueError("planted")
            while mode == "apart" and rank == 0 and step == 10 and not has_command(run.path):
                time.sleep(0.01)
            if mode in ("steered", "apart"):
                time.sleep(0.01 if mode == "steered" else 0.1)
            if mode != "apart" or rank == 0 or step < 3:
                run.step()
    (out / f"expected-{rank}.json").write_text(json.dumps(expected))
    print(f"rank {rank} is through after {run.steps} steps")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
