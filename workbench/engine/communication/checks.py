"""Whether an algorithm can average the gradients of a workload, and the exchange of a plan that can."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from workbench.core import algorithms
from workbench.core.config import TrainSpec
from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.communication.exchange import GradientExchange
from workbench.errors import ConfigError


def check_exchange(spec: TrainSpec, workload: Workload) -> None:
    """Refuse, with ``ConfigError``, gradients that no algorithm takes: sparse ones, and complex ones."""
    if not spec.plan.algorithm:
        return
    flag = f"--algorithm {spec.plan.algorithm}"
    for name, layer in workload.model.named_modules():
        if getattr(layer, "sparse", False) is True:
            raise ConfigError(
                f"{users_name(name)} has sparse gradients, which {flag} does not take: leave out sparse=True, or "
                "--algorithm",
                field="model",
            )
    for name, parameter in workload.model.named_parameters():
        if parameter.is_complex():
            raise ConfigError(
                f"{users_name(name)} is complex, which {flag} does not take: leave out --algorithm", field="model"
            )


def remark_on_exchange(spec: TrainSpec) -> str:
    """What a person should know who chose an algorithm for one rank; "" otherwise."""
    if not spec.plan.algorithm or spec.plan.mesh.dp > 1:
        return ""
    return f"there is one data-parallel rank, which sends no gradients: {spec.plan.algorithm} is not used"


def exchange_of(
    spec: TrainSpec, module: torch.nn.Module, group: dist.ProcessGroup, scale: Callable[[], float]
) -> GradientExchange | None:
    """The exchange of the plan's algorithm; None without one, and where there is no other rank. ``scale``: see
    ``GradientExchange``."""
    if not spec.plan.algorithm or dist.get_world_size(group) == 1:
        return None
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    chosen = algorithms.chosen(spec.plan.algorithm)
    return GradientExchange(chosen, trained, group=group, seed=spec.seed, scale=scale)
