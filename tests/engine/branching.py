"""Ranks that use different parameters of one model, and a plain loop of one process that uses those of all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.workload import Workload
from workbench.engine.entry import joined_of, load_strategy

STEPS = 4


class Heads(torch.nn.Module):
    """Three heads of one shape: even samples use the first, odd ones the second, and none the third."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(5, 6)
        self.heads = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.randn(4, 6)) for name in "abc"})

    def forward(self, samples: torch.Tensor, name: str) -> torch.Tensor:
        return torch.tanh(self.body(samples)) @ self.heads[name].T


def _made() -> tuple[Heads, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = Heads()
    return model, torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def _loss(model: torch.nn.Module, batch: tuple[torch.Tensor, str]) -> torch.Tensor:
    return model(*batch).square().mean()


def _share(step: int, rank: int) -> tuple[torch.Tensor, str]:
    whole = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(step))
    return whole[rank], "ab"[(rank + step // 2) % 2]


def train(rank: int, ranks: int, directory: Path, *, options: dict[str, Any]) -> dict[str, list[float]]:
    """The weights after some steps, whole, by name."""
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": 8, **options})
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"):
        model, optimizer = _made()
        strategy: Any = load_strategy(spec)(spec, rank)
        workload = Workload(model=model, optimizer=optimizer, data=None, loss_fn=_loss)  # type: ignore[arg-type]
        strategy.check(spec, workload)
        strategy.prepare(workload)
        for step in range(STEPS):
            strategy.forward_backward([_share(step, rank)])
            strategy.step()
        with strategy.gathered():
            found = {name: weight.detach().flatten().tolist() for name, weight in model.named_parameters()}
        strategy.close()
    return found


def alone(rank: int, ranks: int, directory: Path) -> dict[str, list[float]]:
    """The same in one process."""
    model, optimizer = _made()
    for step in range(STEPS):
        optimizer.zero_grad()
        for share in range(2):
            (_loss(model, _share(step, share)) / 2).backward()
        optimizer.step()
    return {name: weight.detach().flatten().tolist() for name, weight in model.named_parameters()}
