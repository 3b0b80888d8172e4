"""Whether an algorithm can train a workload, and the exchange of gradients or weights of a plan that can."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from workbench.core import algorithms
from workbench.core.config import TrainSpec
from workbench.engine.base.names import users_name
from workbench.engine.base.workload import Workload
from workbench.engine.communication.exchange import GradientExchange
from workbench.engine.communication.own import check_own
from workbench.engine.communication.weight_exchange import WeightExchange
from workbench.errors import ConfigError


def check_exchange(spec: TrainSpec, workload: Workload) -> None:
    """Refuse, with ``ConfigError``, gradients and weights that no algorithm takes, sparse ones and complex ones, and an
    algorithm of a person's that cannot work."""
    if not spec.plan.algorithm:
        return
    chosen = algorithms.chosen(spec.plan.algorithm)
    check_own(chosen)
    flag = f"--algorithm {spec.plan.algorithm}"
    for name, layer in workload.model.named_modules():
        if getattr(layer, "sparse", False) is True and not chosen.is_local:
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
    what = "weights" if algorithms.is_local(spec.plan.algorithm) else "gradients"
    return f"there is one data-parallel rank, which sends no {what}: {spec.plan.algorithm} is not used"


def exchange_of(
    spec: TrainSpec, module: torch.nn.Module, group: dist.ProcessGroup, scale: Callable[[], float]
) -> GradientExchange | None:
    """The exchange of the plan's algorithm; None without one that acts on gradients, and where there is no other rank.
    ``scale``: see ``GradientExchange``."""
    chosen = _chosen(spec, group)
    if chosen is None or chosen.is_local:
        return None
    return GradientExchange(chosen, _trained(module), group=group, seed=spec.seed, scale=scale)


def weight_exchange_of(spec: TrainSpec, module: torch.nn.Module, group: dist.ProcessGroup) -> WeightExchange | None:
    """As ``exchange_of``, of an algorithm that acts on weights."""
    chosen = _chosen(spec, group)
    if chosen is None or not chosen.is_local:
        return None
    return WeightExchange(chosen, module, _trained(module), group=group, seed=spec.seed)


def _chosen(spec: TrainSpec, group: dist.ProcessGroup) -> algorithms.ChosenAlgorithm | None:
    if not spec.plan.algorithm or dist.get_world_size(group) == 1:
        return None
    return algorithms.chosen(spec.plan.algorithm)


def _trained(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
