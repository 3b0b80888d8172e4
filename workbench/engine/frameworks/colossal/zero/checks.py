"""What Gemini cannot hold, and how it is found."""

from __future__ import annotations

from workbench.core.config import TrainSpec
from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.engine.frameworks.torch_common.trained import trained
from workbench.errors import ConfigError


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
