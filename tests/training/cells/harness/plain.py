"""The loop that anyone would write for a cell: one process, the whole batch, nothing of the workbench."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler, default_collate

__all__ = ["batches", "call", "loss_of", "norm_of", "train"]


def seed(number: int) -> None:
    """Every random generator begins as on a rank."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def batches(names: Mapping[str, Any]) -> Iterator[Any]:
    """The global batches: of the dataloader, whose order in each epoch depends on the seed alone, or of the dataset."""
    spec = names["spec"]
    loader = names.get("dataloader")
    for epoch in count():
        if loader is not None:
            sampler = getattr(loader, "sampler", None)
            if isinstance(sampler, RandomSampler) and loader.generator is None:
                sampler.generator = torch.Generator().manual_seed(spec.seed + epoch)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            yield from loader
            continue
        samples = list(names["dataset"]) if not hasattr(names["dataset"], "__len__") else names["dataset"]
        for first in range(0, len(samples) - spec.batch_size + 1, spec.batch_size):
            yield default_collate([samples[index] for index in range(first, first + spec.batch_size)])


def call(model: Any, batch: Any) -> Any:
    """Outputs for a batch: a mapping by name; of a tuple or list the last entry is the target."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch[:-1]) if len(batch) > 1 else model(*batch)
    return model(batch)


def loss_of(names: Mapping[str, Any], batch: Any) -> torch.Tensor:
    """The loss of a batch; of (sum, count) the mean."""
    if names.get("loss_fn") is not None:
        found = names["loss_fn"](names["model"], batch)
        return found[0] / found[1] if isinstance(found, tuple) else found
    outputs = call(names["model"], batch)
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    return names["criterion"](outputs, batch[1] if pair else batch)


def norm_of(optimizer: torch.optim.Optimizer) -> float:
    """L2 norm of the gradient of all parameters that the optimizer holds."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    squares = [p.grad.detach().abs().double().square().sum() for p in parameters if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


def train(
    names: Mapping[str, Any], validate: Callable[[], Mapping[str, Any]] | None = None
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of every step. ``validate`` is called after each ``spec.eval_every`` steps, the model
    being in evaluation mode; what it returns is added to the names' ``validations``."""
    optimizer, schedule, losses, norms = names["optimizer"], names.get("lr_scheduler"), [], []
    stream = batches(names)
    for step in range(1, names["spec"].steps + 1):
        loss = loss_of(names, next(stream))
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach().float().item())
        norms.append(norm_of(optimizer))
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if validate is not None and step % names["spec"].eval_every == 0:
            names["model"].eval()
            with torch.no_grad():
                names["validations"].append(validate())
            names["model"].train()
    return losses, norms
