"""What ranks do to compare split models with one process: a family's classes one after the other."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.engine import split_models
from tests.engine.models import part
from workbench.core.config import TrainSpec
from workbench.engine.base.workload import Workload
from workbench.engine.entry import joined_of, load_strategy
from workbench.engine.frameworks.colossal.families import FAMILIES
from workbench.engine.frameworks.torch_common.losses.calls import noted_losses
from workbench.engine.frameworks.torch_common.trained import users_model
from workbench.errors import ConfigError

for _family in FAMILIES:  # once, in the process that ranks are forked from
    importlib.import_module(f"transformers.models.{_family}.modeling_{_family}")
    importlib.import_module(f"colossalai.shardformer.policies.{_family}")

STEPS = 4
#: family, name of the class, settings of its configuration, and more arguments of ``split_models.model``
Case = tuple[str, str, dict[str, Any], dict[str, Any]]
Losses = list[float]


def plain(rank: int, ranks: int, directory: Path, *, cases: list[Case]) -> list[tuple[Losses, Losses]]:
    """Losses and norms of the plain loop of one process, case by case."""
    return [_plain(*case) for case in cases]


def _plain(family: str, name: str, settings: dict[str, Any], more: dict[str, Any]) -> tuple[Losses, Losses]:
    network = split_models.model(family, name, settings, **more)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.02)
    losses, norms = [], []
    for step in range(STEPS):
        data = split_models.batch(family, name, step, network.config.num_labels)
        loss = split_models.criterion(network(**data), data)
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(network.parameters(), math.inf).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms


def train(
    rank: int, ranks: int, directory: Path, *, cases: list[Case], options: dict[str, Any]
) -> list[tuple[Losses, Losses] | str]:
    """Losses and norms, global, case by case; of one that is refused the message."""
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": split_models.BATCH, "plugin": "hybrid", **options})
    found: list[tuple[Losses, Losses] | str] = []
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"), noted_losses():
        for case in cases:
            try:
                found.append(_train(rank, spec, case))
            except ConfigError as refusal:
                found.append(str(refusal))
    return found


def _prepared(rank: int, spec: TrainSpec, case: Case) -> Any:
    family, name, settings, more = case
    network = split_models.model(family, name, settings, **more)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.02)
    workload = Workload(model=network, optimizer=optimizer, data=None, criterion=split_models.criterion)  # type: ignore[arg-type]
    strategy = load_strategy(spec)(spec, rank)
    strategy.check(spec, workload)
    strategy.prepare(workload)
    return strategy


def _train(rank: int, spec: TrainSpec, case: Case) -> tuple[Losses, Losses]:
    strategy = _prepared(rank, spec, case)
    losses, norms = [], []
    try:
        labels = users_model(strategy.module).config.num_labels
        for step in range(STEPS):
            data = split_models.batch(*case[:2], step, labels)
            pieces = [part(data, index, spec.accumulate) for index in range(spec.accumulate)]
            loss = strategy.forward_backward(pieces)
            seen = torch.tensor([0.0, 0.0] if loss is None else [loss.item(), 1.0], dtype=torch.float64)
            square = strategy.grad_sq().clone()
            dist.all_reduce(seen)
            dist.all_reduce(square)
            losses.append((seen[0] / seen[1]).item())
            norms.append(square.sqrt().item())
            strategy.step()
    finally:
        strategy.close()
    return losses, norms


def drifted(rank: int, ranks: int, directory: Path, *, cases: list[Case]) -> list[list[str]]:
    """Weights that all tensor-parallel ranks hold and that differ after some steps with dropout, case by case."""
    from workbench.engine.frameworks.colossal.module_state import is_sharded

    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": split_models.BATCH, "plugin": "hybrid", "tp": ranks})
    found = []
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"), noted_losses():
        for case in cases:
            strategy = _prepared(rank, spec, case)
            for step in range(2):
                strategy.forward_backward([split_models.batch(*case[:2], step, 2)])
                strategy.step()
            whole = {n: p.detach() for n, p in strategy.module.named_parameters() if not is_sharded(p)}
            sums = {name: (weight.sum(), weight.abs().sum()) for name, weight in whole.items()}
            mine = torch.tensor([value for pair in sums.values() for value in pair], dtype=torch.float64)
            least, most = mine.clone(), mine.clone()
            dist.all_reduce(least, op=dist.ReduceOp.MIN)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
            differs = (most - least).view(-1, 2).amax(1) > 1e-5
            found.append([name for name, flag in zip(sums, differs.tolist(), strict=True) if flag])
            strategy.close()
    return found
