"""The loss that a script gives to ``run.step``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from workbench.errors import ConfigError


def value_of(loss: Any, computed: Sequence[torch.Tensor]) -> Any:
    """``loss`` as a number or a tensor of one element; None: the sum of those that were ``computed``. Raises
    ``ConfigError`` for what is neither."""
    if loss is None:
        return sum(computed) if computed else math.nan
    if isinstance(loss, torch.Tensor) and loss.numel() == 1:
        return loss.detach()
    try:
        return float(loss)
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)[:80]
        raise ConfigError(
            f"run.step({what}): the loss must be a number or a tensor with one element, such as loss.mean()"
        ) from error
