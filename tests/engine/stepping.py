"""Training with local steps on ranks: what its checkpoints hold, and plain loops that train the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.engine import models, steered
from workbench.rundir import checkpoints


def saved(rank: int, ranks: int, directory: Path, **arguments: Any) -> dict[str, Any]:
    """``steered.train``, and by how much, in each checkpoint, the weights that any plan reads differ from the mean of
    those that ranks keep for themselves, and those of ranks from each other."""
    found = steered.train(rank, ranks, directory, **arguments)
    apart = {}
    for step in checkpoints.steps(directory / "run") if rank == 0 else ():
        path = checkpoints.directory(directory / "run", step)
        files = [load_file(path / f"rank-{number:05d}.safetensors") for number in range(ranks)]
        whole = {name: tensor for file in files for name, tensor in file.items() if name.startswith("weights/")}
        own = {name: torch.stack([file[f"apart/{name}"] for file in files]) for name in whole}
        apart[step] = (
            max((own[name].mean(0) - whole[name]).abs().max().item() for name in whole),
            max((own[name][0] - own[name][1]).abs().max().item() for name in whole),
        )
    return {**found, "apart": apart}


def by_hand(ranks: int, *, steps: int, every: int, clip: float, accumulate: int) -> dict[str, list[Any]]:
    """Local SGD of the plain model in one process: losses of each rank, and the mean square of gradient norms."""
    each = [models.model("plain") for _ in range(ranks)]
    optimizers = [models.optimizer(network) for network in each]
    losses: list[list[float]] = [[] for _ in each]
    squares = []
    for step in range(steps):
        norms = []
        for rank, (network, optimizer) in enumerate(zip(each, optimizers, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1 - 0.5 * step / steps)
            share, loss = models.part(models.batch("plain", step), rank, ranks), 0.0
            for piece in range(accumulate):
                data = models.part(share, piece, accumulate)
                part = models.criterion(models.outputs(network, data), data) / accumulate
                part.backward()
                loss += part.item()
            norms.append(torch.nn.utils.clip_grad_norm_(network.parameters(), clip).item())
            losses[rank].append(loss)
            optimizer.step()
            optimizer.zero_grad()
        squares.append(sum(norm**2 for norm in norms) / ranks)
        if (step + 1) % every == 0:
            with torch.no_grad():
                for parameters in zip(*(network.parameters() for network in each), strict=True):
                    mean = torch.stack(list(parameters)).mean(0)
                    for parameter in parameters:
                        parameter.copy_(mean)
    return {"losses": losses, "squares": squares}
