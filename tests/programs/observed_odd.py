"""Loops that are observed and odd: ``observed_odd.py MODE OUT``. ``alone``: an optimizer that is swapped, a run whose
optimizer never steps, one that is never stepped, and two that are left. ``ranks``: one rank only observes; then a
model of FSDP2, whose statistics stand beside those of a whole model in float64."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import workbench
from tests.programs.observed_script import by_layer, network
from workbench.errors import ConfigError

STEPS, LR = 6, 0.1
EVERY_STEP = workbench.MonitorSpec(grad_every=1)


def batch(rank: int, step: int) -> Any:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(6, 8, generator=generator), torch.randint(0, 4, (6,), generator=generator)


def backward(model: torch.nn.Module, step: int) -> None:
    x, y = batch(0, step)
    model.zero_grad()
    cross_entropy(model(x), y).backward()


def swapped() -> dict[str, Any]:
    """The optimizer is replaced after three steps."""
    model = network()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    norms = []
    with workbench.observe(model, optimizer, name="swapped", monitor=EVERY_STEP) as run:
        for step in range(STEPS):
            if step == STEPS // 2:
                optimizer = torch.optim.AdamW(model.parameters(), lr=LR / 2)
            backward(model, step)
            norms.append(sum(float(p.grad.double().square().sum()) for p in model.parameters()) ** 0.5)  # type: ignore[union-attr]
            optimizer.step()
            run.step()
    return {"path": str(run.path), "norms": norms}


def unstepped() -> dict[str, Any]:
    """``run.step`` is called, and the optimizer does nothing."""
    model = network()
    with workbench.observe(model, torch.optim.SGD(model.parameters(), lr=LR), name="unstepped") as run:
        for step in range(10):
            backward(model, step)
            if step % 2:
                model.zero_grad()
            run.step()
    return {"path": str(run.path)}


def uncalled() -> dict[str, Any]:
    """The optimizer steps, and ``run.step`` is never called."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with workbench.observe(model, optimizer, name="uncalled") as run:
        for step in range(10):
            backward(model, step)
            optimizer.step()
    return {"path": str(run.path)}


def closed() -> dict[str, Any]:
    """The gradients are computed by a closure within the optimizer's step, from two pieces of the batch."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    norms: list[float] = []
    with workbench.observe(model, optimizer, name="closed", monitor=EVERY_STEP) as run:
        for step in range(STEPS):

            def closure(number: int = step) -> float:
                for piece in range(2):
                    x, y = batch(piece, number)
                    (cross_entropy(model(x), y) / 2).backward()
                norms.append(sum(float(p.grad.double().square().sum()) for p in model.parameters()) ** 0.5)  # type: ignore[union-attr]
                return 0.0

            optimizer.zero_grad()
            optimizer.step(closure)
            run.step()
    return {"path": str(run.path), "norms": norms}


def left(code: object) -> dict[str, Any]:
    """The script leaves the block by ``sys.exit``."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with contextlib.suppress(SystemExit), workbench.observe(model, optimizer, name="left") as run:
        backward(model, 0)
        optimizer.step()
        run.step()
        sys.exit(code)  # type: ignore[arg-type]
    return {"path": str(run.path)}


def one_rank(rank: int) -> str:
    """Rank 0 alone observes: what it is told."""
    model = network()
    if rank == 0:
        try:
            workbench.observe(model, torch.optim.SGD(model.parameters()), name="one-rank", patience_s=1.0)
        except ConfigError as error:
            return str(error)
    return ""


def sharded(rank: int, ranks: int) -> dict[str, Any]:
    """FSDP2, beside the same model in float64 on the batches of all ranks."""
    model = network()
    whole = copy.deepcopy(model).double()
    fully_shard(model[0])
    fully_shard(model[2])
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    expected = []
    with workbench.observe(model, optimizer, name="fsdp", monitor=EVERY_STEP) as run:
        for step in range(STEPS):
            losses = [cross_entropy(whole(x.double()), y) for x, y in (batch(each, step) for each in range(ranks))]
            loss = torch.stack(losses).mean()
            names = dict(whole.named_parameters())
            found = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))  # type: ignore[arg-type]
            total = float(sum(gradient.square().sum() for gradient in found.values()) ** 0.5)
            expected.append({"loss": loss.item(), "grad_norm": total, "reduced": by_layer(found)})
            with torch.no_grad():
                for name, parameter in names.items():
                    parameter.sub_(LR * found[name])
            x, y = batch(rank, step)
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            run.step()
    return {"path": str(run.path), "expected": expected}


def main(mode: str, out: Path) -> None:
    if mode == "alone":
        found = {"swapped": swapped(), "unstepped": unstepped(), "uncalled": uncalled()}
        found |= {"closed": closed(), "left-well": left(0), "left-badly": left("no data")}
        (out / "found-0.json").write_text(json.dumps(found))
        return
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    told = one_rank(rank)
    dist.barrier()
    (out / f"found-{rank}.json").write_text(json.dumps({"told": told, "fsdp": sharded(rank, ranks)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
