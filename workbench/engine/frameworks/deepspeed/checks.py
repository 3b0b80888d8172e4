"""What DeepSpeed's ZeRO would train as another model, or cannot train."""

from __future__ import annotations

import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
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
