"""A fault that is put into a training on purpose, by ``%dist_fault nan``."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook


def give_nan() -> None:
    """Multiplies the output of the next module that runs in training mode on this rank by NaN, once.

    Only a module whose output is a tensor of floats. Called in a thread of the rank.
    """

    def poison(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        if not (module.training and isinstance(output, torch.Tensor) and output.is_floating_point()):
            return None
        handle.remove()
        return output * torch.nan

    handle = register_module_forward_hook(poison)
