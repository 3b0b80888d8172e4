"""What a cell declares of its schedule, and the hooks that it defines."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.core.config import TrainSpec
from workbench.engine.frameworks.torch_common.optimizer_checks import check_scheduler
from workbench.errors import ConfigError

HOOKS = ("on_step", "on_epoch")


def schedule_of(names: Mapping[str, Any], schedulers: Sequence[Any], spec: TrainSpec) -> tuple[str, str]:
    """What the cell's ``schedulers`` (None: it has none) are stepped after, and the value of the validation that they
    are given ("": none). ``ConfigError`` for one that cannot be stepped so."""
    metric = names.get("lr_scheduler_metric", "")
    every = names.get("lr_scheduler_every", "evaluation" if metric else "step")
    for scheduler in schedulers:
        check_scheduler(scheduler, every, metric)
    if metric and not spec.eval_every:
        raise ConfigError(
            "lr_scheduler_metric needs validation, which --eval-every 0 turns off: use --eval-every N or 1ep",
            field="lr_scheduler_metric",
        )
    return every, metric


def hooks_of(names: Mapping[str, Any]) -> dict[str, Callable[[int, Mapping[str, Any]], Any]]:
    """The hooks of the cell, by name. ``ConfigError`` for one that cannot be called with a number and values."""
    found = {name: names[name] for name in HOOKS if names.get(name) is not None}
    for name, hook in found.items():
        what = name.removeprefix("on_")
        try:
            inspect.signature(hook).bind(1, {})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name} must be a function of ({what}, values)", field=name) from error
    return found
