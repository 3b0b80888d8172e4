"""``--compile``: the model is compiled once, whatever compiled it, and what cannot be compiled is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from workbench.core.config import ParallelPlan, TrainSpec
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch_common import compiled_model
from workbench.engine.frameworks.torch_common.compiled_model import compile_if_asked
from workbench.errors import ConfigError

COMPILED = TrainSpec(plan=ParallelPlan.parse("ddp1 compile"))


def workload(model: torch.nn.Module, **more: Any) -> Workload:
    loss = {"loss_fn": lambda model, batch: model(batch).sum()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Workload(model=model, optimizer=optimizer, data=None, **loss, **more)  # type: ignore[arg-type]


class Wrapper(torch.nn.Module):
    """What ``torch.compile`` returns, without the compiler, whose import takes seconds."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


def test_the_model_is_compiled_once_and_only_where_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", Wrapper)
    monkeypatch.setattr(compiled_model, "_check_compiler", lambda: None)
    model = torch.nn.Linear(2, 2)
    work = workload(model)
    compile_if_asked(work, TrainSpec())
    assert work.model is model
    compile_if_asked(work, COMPILED)
    wrapper: Any = work.model
    assert wrapper._orig_mod is model and {*work.model.parameters()} == {*model.parameters()}
    compile_if_asked(work, COMPILED)
    assert work.model is wrapper, "as of a cell that has compiled it"


def test_a_step_of_the_cell_is_left_to_the_cell() -> None:
    with pytest.raises(ConfigError, match=r"--compile .* beside a train_step, leave it out and write model ="):
        compile_if_asked(workload(torch.nn.Linear(2, 2), train_step=lambda model, batch: 0.0), COMPILED)


def test_a_host_without_a_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ConfigError, match=r"--compile needs a C\+\+ compiler .*: install g\+\+"):
        compile_if_asked(workload(torch.nn.Linear(2, 2)), COMPILED)
