"""The ``train_step`` that a cell declares, and what it excludes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from workbench.errors import ConfigError


def own_step(names: Mapping[str, Any], optimizer: Any) -> Callable[[torch.nn.Module, Any], Any]:
    """``train_step(model, optimizer, batch)`` of the cell, given its ``optimizer``.

    Raises ``ConfigError`` for one that takes other arguments, and for validation data whose loss nothing computes.
    """
    step, model = names["train_step"], names["model"]
    if not callable(step):
        raise ConfigError(
            f"train_step is a {type(step).__name__}: define train_step(model, optimizer, batch)", field="train_step"
        )
    try:
        inspect.signature(step).bind(model, optimizer, None)
    except TypeError as error:
        raise ConfigError(
            f"train_step takes other arguments ({error}): define train_step(model, optimizer, batch)",
            field="train_step",
        ) from error
    has_data = names.get("eval_dataset") is not None or names.get("eval_dataloader") is not None
    if has_data and not any(callable(names.get(name)) for name in ("loss_fn", "criterion", "evaluate")):
        raise ConfigError(
            "eval_dataset needs something that computes a validation loss, which train_step does not: define "
            "criterion, loss_fn(model, batch) or evaluate(model, loader)",
            field="eval_dataset",
        )
    return lambda model, batch: step(model, optimizer, batch)
