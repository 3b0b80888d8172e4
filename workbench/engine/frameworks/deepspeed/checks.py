"""What DeepSpeed's ZeRO would train as another model, or cannot train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.deepspeed.config_file import left
from workbench.engine.frameworks.torch_common.gradient_hooks import check_hooks
from workbench.engine.frameworks.torch_common.optimizer_checks import check_parts
from workbench.engine.frameworks.torch_common.trained import trained
from workbench.engine.frameworks.torch_common.zero.flat_parameters import check_parameters
from workbench.errors import ConfigError


def check(spec: TrainSpec, workload: Workload) -> None:
    """Refuse it with ``ConfigError``."""
    model, plugin = trained(workload), f"--framework deepspeed --plugin {spec.plan.plugin}"
    check_parameters(model, spec)
    check_hooks(spec, model, workload.optimizer, has_copies=True)
    check_parts(workload.optimizer, spec.plan.plugin, tp=1, pp=1, has_slices=spec.plan.mesh.dp > 1)
    check_optimizer(left(spec).get("optimizer", {}), workload.optimizer)
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks:
            raise ConfigError(
                f"{users_name(name)} has a gradient hook, which {plugin} cannot call with the whole gradient: use "
                "--framework torch or colossal with --plugin ddp",
                field="model",
            )
    if isinstance(workload.optimizer, torch.optim.Adagrad):
        raise ConfigError(
            f"{plugin} makes an Adagrad of its own, which has one parameter group and does not follow the learning "
            "rate of the cell's: use another optimizer, or --framework torch or colossal",
            field="optimizer",
        )


def check_optimizer(written: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Refuse, with ``ConfigError``, a configuration whose optimizer is not the one that the cell or the recipe made:
    of its class, with its defaults. ``lr`` is an option of the run."""
    kind, is_ = str(written.get("type", "")).lower(), type(optimizer).__name__
    settings = dict(written.get("params", {}))
    if kind == "adam" and (settings.pop("adam_w_mode", True) or not settings.get("weight_decay")):
        kind = "adamw" if is_ == "AdamW" or settings.get("weight_decay") else kind  # DeepSpeed's Adam decays as AdamW
    if kind and kind != is_.lower():
        raise ConfigError(
            f"--ds-config says optimizer.type {written['type']} ({kind}), and the optimizer is {is_}: the cell or the "
            "recipe makes it, so write the same, or leave optimizer.type out",
            field="--ds-config",
        )
    for name, value in settings.items():
        own = optimizer.defaults.get(name, "unknown to it")
        if (list(own) if isinstance(own, tuple) else own) != value:
            raise ConfigError(
                f"--ds-config says optimizer.params.{name} {value}, and that of the {is_} of the cell or the recipe is "
                f"{own}: write the same, or leave it out",
                field="--ds-config",
            )
