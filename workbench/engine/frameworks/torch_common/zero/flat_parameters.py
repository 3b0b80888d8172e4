"""What ZeRO cannot hold, where each rank updates flat slices of fp32 copies."""

from __future__ import annotations

import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.names import users_name
from workbench.errors import ConfigError


def check_parameters(model: torch.nn.Module, spec: TrainSpec) -> None:
    """Refuse, with ``ConfigError``, parameters that ZeRO would reduce or update wrongly: complex and empty ones,
    ones with sparse gradients, and ones of several types."""
    plugin = f"--plugin {spec.plan.plugin}"
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) and isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag):
            raise ConfigError(
                f"{users_name(name)} is an {type(module).__name__} with sparse gradients, which {plugin} cannot "
                "reduce: use --plugin ddp, or sparse=False",
                field="--plugin",
            )
    types: dict[torch.dtype, str] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise ConfigError(
                f"{users_name(name)} is complex, which {plugin} cannot hold: use --plugin ddp", field="--plugin"
            )
        if not parameter.numel() and parameter.requires_grad:
            raise ConfigError(
                f"{users_name(name)} has no elements (shape {tuple(parameter.shape)}), which {plugin} cannot hold: use "
                "--plugin ddp, or leave it out",
                field="--plugin",
            )
        types.setdefault(parameter.dtype, users_name(name))
    if spec.precision == "fp32" and torch.float64 in types and len(types) == 1:
        raise ConfigError(
            f"the parameters are float64, of which {plugin} keeps float32 copies: use --plugin ddp, or float32",
            field="--plugin",
        )
    if len(types) > 1 and spec.precision == "fp32":
        found = ", ".join(f"{name} is {str(dtype).removeprefix('torch.')}" for dtype, name in types.items())
        raise ConfigError(
            f"the parameters have several types ({found}), which {plugin} cannot hold: use --plugin ddp, or one type",
            field="--plugin",
        )
