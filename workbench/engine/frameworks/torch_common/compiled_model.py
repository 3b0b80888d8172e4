"""``--compile``: the model of a cell or a recipe, compiled before a plan spreads it over the ranks."""

from __future__ import annotations

import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch_common.device import rank_device
from workbench.errors import ConfigError


def compile_if_asked(workload: Workload, spec: TrainSpec) -> None:
    """Put ``torch.compile(model)`` in the place of the workload's model where the plan says so; a model that the cell
    has compiled stays as it is. Nothing is compiled before the first forward pass.

    Raises ``ConfigError`` for a cell with a ``train_step``, and on CPU ranks without a C++ compiler.
    """
    if not spec.plan.compile or hasattr(workload.model, "_orig_mod"):
        return
    if workload.train_step is not None:
        raise ConfigError(
            "--compile compiles what a loss_fn or criterion calls: beside a train_step, leave it out and write "
            "model = torch.compile(model) in the cell",
            field="--compile",
        )
    if rank_device().type == "cpu":
        _check_compiler()
    workload.model = torch.compile(workload.model)  # type: ignore[assignment]


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "--compile needs a C++ compiler on hosts without a GPU, and there is none: install g++, set CXX to another "
            "one, or leave --compile out",
            field="--compile",
        ) from error
