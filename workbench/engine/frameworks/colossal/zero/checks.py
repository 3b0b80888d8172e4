"""What low-level ZeRO and Gemini cannot hold, and how it is found."""

from __future__ import annotations

import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.engine.frameworks.torch_common.trained import trained
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


def check_gemini(spec: TrainSpec, workload: Workload) -> None:
    """Refuse, with ``ConfigError``, what Gemini would train as another model, or cannot train on this device."""
    if spec.plan.placement == "auto" and rank_device().type == "cpu":
        raise ConfigError(
            "--placement auto moves chunks by the free memory of a GPU, which CPU ranks do not have: leave it out",
            field="--placement",
        )
    for name, parameter in trained(workload).named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:  # type: ignore[attr-defined]
            raise ConfigError(
                f"{users_name(name)} has a gradient hook, which --plugin gemini cannot call with the whole gradient: "
                "use --plugin zero2",
                field="model",
            )
    if any(workload.optimizer.state.values()):
        raise ConfigError(
            "the optimizer has state already, as the cell stepped it or loaded its state, which --plugin gemini does "
            "not cut: use --plugin zero2, or make the optimizer anew",
            field="optimizer",
        )
