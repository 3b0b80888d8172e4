"""What ranks do in the tests of DeepSpeed: train with a loss that goes beside the model's modules to its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.engine import models
from tests.engine.boosted import _mean_over_ranks, pieces, workload
from workbench.core.config import TrainSpec
from workbench.engine.base.capabilities import gathered
from workbench.engine.entry import joined_of, load_strategy


def train(
    rank: int, ranks: int, directory: Path, *, kind: str, options: dict[str, Any], token: str = ""
) -> dict[str, Any]:
    """Losses of 4 steps, and what became of a layer that no sample uses. ``kind``: the weights that the loss is to keep
    small: "one" of a module, or "all" that the model lists."""
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": models.BATCH, **options})
    with joined_of(spec)(rank, ranks, directory, device_type="cpu", token=token):
        given = workload("plain")
        network = given.model
        first = next(module for module in network.modules() if isinstance(module, torch.nn.Linear))
        first.unused = torch.nn.Linear(3, 3)
        given.optimizer.add_param_group({"params": list(first.unused.parameters()), "weight_decay": 0.1})

        def loss_fn(model: torch.nn.Module, data: Any) -> torch.Tensor:
            loss = models.criterion(models.outputs(model, data), data)
            weights = [first.weight] if kind == "one" else list(model.parameters())
            return loss + 0.1 * sum(weight.pow(2).sum() for weight in weights)

        strategy = load_strategy(spec)(spec, rank)
        work = replace(given, loss_fn=loss_fn, criterion=None)
        strategy.check(spec, work)
        strategy.prepare(work)
        with gathered(strategy):
            before = first.unused.weight.detach().clone()
        try:
            losses = []
            for step in range(4):
                losses.append(_mean_over_ranks(strategy.forward_backward(pieces(strategy, "plain", step))))
                strategy.step()
            with gathered(strategy):
                return {"losses": losses, "is_left": torch.equal(first.unused.weight, before)}
        finally:
            strategy.close()
