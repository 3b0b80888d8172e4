"""The model, optimizer and schedule of a cell that names a directory, or asks for adapters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.engine.pretrained import lora
from workbench.engine.pretrained.load import TRAINED, MappedWeights, load_pretrained
from workbench.errors import ConfigError


def make_model(names: dict[str, Any], spec: TrainSpec) -> Callable[[torch.nn.Module], object] | None:
    """Put what ``pretrained`` and ``lora`` stand for into the ``names`` that a cell defines.

    ``pretrained``: a directory, which gives ``model``. ``lora``: adapters in the model. ``optimizer`` may be a function
    of the parameters that are trained, ``lr_scheduler`` one of the optimizer. Returns what is to be called with the
    model once a plan has split it. Raises ``ConfigError`` for names that contradict each other.
    """
    after_split = None
    if names.get("pretrained") is not None:
        if names.get("model") is not None:
            raise ConfigError(
                "the cell defines model and pretrained: leave one of them out; pretrained = DIR makes the model",
                field="pretrained",
            )
        if not isinstance(names["pretrained"], str | Path):
            raise ConfigError(
                f"pretrained is a {type(names['pretrained']).__name__}: give the path of a local directory",
                field="pretrained",
            )
        names["model"], after_split = load_for_plan(names["pretrained"], spec)
    if names.get("lora") is not None:
        lora.add_adapters(names["model"], names["lora"])
    _make_optimizer(names)
    return after_split


def load_for_plan(
    path: str | Path, spec: TrainSpec, *, field: str = "pretrained"
) -> tuple[Any, Callable[[torch.nn.Module], object] | None]:
    """The model of a directory, and what is to be called with it once the plan has split it, if the plan does."""
    split = spec.plan.tp * spec.plan.pp > 1
    model = load_pretrained(path, split=split, field=field)
    if not split:
        return model, None
    dtype = TRAINED if spec.precision == "fp32" else None
    return model, partial(MappedWeights(model).make_own, dtype=dtype)


def _make_optimizer(names: dict[str, Any]) -> None:
    optimizer, scheduler = names.get("optimizer"), names.get("lr_scheduler")
    if callable(optimizer) and not hasattr(optimizer, "param_groups"):
        names["optimizer"] = optimizer([p for p in names["model"].parameters() if p.requires_grad])
    elif names.get("pretrained") is not None or names.get("lora") is not None:
        name = "pretrained" if names.get("pretrained") is not None else "lora"
        raise ConfigError(
            f"with {name} the weights that are trained are made after the cell: define the optimizer as a function of "
            "them, such as optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-4)",
            field="optimizer",
        )
    if callable(scheduler) and not hasattr(scheduler, "step"):
        names["lr_scheduler"] = scheduler(names["optimizer"])
