"""Tries a cell's learning rate schedule on the steps to come, before the first of them."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

from workbench.errors import ConfigError

#: more steps than this are not tried: a scheduler's step takes some 20 microseconds
_MOST_STEPS = 20_000


def check_schedule(optimizer: Any, scheduler: Any, done: int, steps: int, unit: str = "step") -> str:
    """What to warn of in steps ``done`` + 1 to ``steps`` of a schedule that continues from its present state; "" if
    nothing. A copy of the scheduler steps; the optimizer's tensors are not copied. ``unit``: what it is stepped after.

    Raises ``ConfigError`` when the scheduler raises in one of these steps, as torch's OneCycleLR after its last.
    """
    parts = getattr(scheduler, "parts", None)  # of several optimizers
    if parts is not None:
        return next(filter(None, (check_schedule(part.optimizer, part, done, steps) for part in parts)), "")
    groups = [{**group, "params": []} for group in optimizer.param_groups]
    stand_in = SimpleNamespace(param_groups=copy.deepcopy(groups), defaults=dict(optimizer.defaults), step=_no_step)
    ahead = copy.deepcopy(scheduler, {id(optimizer): stand_in})
    highest = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(done + 1, min(steps, done + _MOST_STEPS) + 1):
            highest = max(highest, *(abs(float(group["lr"])) for group in stand_in.param_groups))
            try:
                ahead.step()
            except Exception as error:
                fewer = f"train with --{unit}s {step - 1} or less, or " if step - 1 > done else ""
                raise ConfigError(
                    f"the cell's lr_scheduler fails after {unit} {step}: {type(error).__name__}: {error}. To go on, "
                    f"{fewer}leave lr_scheduler out of the cell",
                    field="lr_scheduler",
                ) from error
    if highest or done >= steps:
        return ""
    return f"the cell's lr_scheduler gives a learning rate of 0 for all of {unit}s {done + 1} to {steps}"


def _no_step() -> None:
    """In place of the optimizer's ``step``."""
