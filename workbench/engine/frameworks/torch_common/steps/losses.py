"""What a ``train_step`` returned, as the loss of its step and as values with names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from workbench.engine.base.user_log import UserLog
from workbench.errors import ConfigError

_LOSS = "loss"


def loss_of(found: Any, device: torch.device) -> torch.Tensor:
    """The loss that ``train_step`` returned, a detached fp32 scalar; of a dict its "loss", or else the sum.

    Raises ``ConfigError`` for what is no number.
    """
    if isinstance(found, Mapping):
        if _LOSS in found:
            return _number(found[_LOSS], device)
        parts = [_number(part, device) for part in found.values() if not isinstance(part, Mapping)]
        if not parts:
            raise ConfigError("train_step returned no loss: return a number, or a dict of them", field="train_step")
        return torch.stack(parts).sum()
    return _number(found, device)


def _number(found: Any, device: torch.device) -> torch.Tensor:
    if isinstance(found, torch.Tensor) and found.numel() == 1:
        return found.detach().to(device).float().reshape(())
    if isinstance(found, int | float) and not isinstance(found, bool):
        return torch.tensor(float(found), dtype=torch.float32, device=device)
    what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
    raise ConfigError(
        f"train_step returned {what}: return the loss of the batch (a number or a tensor of one element), or a dict of "
        "named losses",
        field="train_step",
    )


def log_named_losses(log: UserLog, found: Any, share: float) -> None:
    """Log the entries of a dict of losses, but "loss": each is that of the global batch, where this rank's samples are
    ``share`` of it. A name that the cell logs itself is left to it."""
    if not isinstance(found, Mapping) or not share:
        return
    for name, part in found.items():
        if name == _LOSS or isinstance(part, Mapping):
            continue
        is_number = isinstance(part, torch.Tensor | int | float)
        own = part.detach() if isinstance(part, torch.Tensor) else part
        log.add(str(name), own * share if is_number else own, "sum")  # of what is no number, the log says so
