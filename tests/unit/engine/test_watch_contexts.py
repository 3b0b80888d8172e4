"""What is entered around forward and backward is left in order, and told what went wrong, when a step fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from workbench.core.config import TrainSpec
from workbench.core.mesh import Mesh
from workbench.engine.base.strategy import Strategy
from workbench.engine.faults.nonfinite_search import NonfiniteSearch
from workbench.engine.watch.torch.gradient_watch import GradientWatch
from workbench.rundir.log import RankLogWriter


class HookedStrategy:
    """Two replicas of one linear layer; ``watch_batches`` sets a hook, and remembers how it was left."""

    def __init__(self) -> None:
        self.mesh = Mesh(dp=2, tp=1, pp=1)
        self.rank = 0
        self.module = torch.nn.Linear(3, 1)
        self.seen: list[BaseException | None] = []
        self.kept: list[bool] = []

    def layer_sizes(self) -> dict[str, int]:
        return {"": 4}

    def local_factor(self) -> float:
        return 1.0

    def reduced_gradients(self, layers: Any = None, *, all_held: bool = False) -> list[Any]:
        return []

    def reports(self, layer: str, sharded: str) -> bool:
        return True

    def compare(self, parts: Any) -> None:
        return None

    def weights(self, layers: Any = None) -> list[Any]:
        return []

    @contextmanager
    def watch_batches(self, observer: Any, layers: Any = None, *, keep: bool = False) -> Iterator[None]:
        self.kept.append(keep)
        handle = self.module.weight.register_hook(lambda gradient: None)
        try:
            yield
        except BaseException as error:
            self.seen.append(error)
            raise
        else:
            self.seen.append(None)
        finally:
            handle.remove()


class Broken(torch.autograd.Function):
    """The identity, whose backward pass fails."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory in backward")


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[GradientWatch, HookedStrategy]]:
    spec = TrainSpec.from_options({"ranks": 2, "batch_size": 2, "grad_every": 1})
    strategy = HookedStrategy()
    with RankLogWriter(tmp_path, 0) as log:
        yield GradientWatch(spec, cast(Strategy, strategy), log, torch.device("cpu")), strategy


def backward(watch: GradientWatch, strategy: HookedStrategy, *, broken: bool) -> None:
    """Forward and backward of one step inside the watch's context, as the trainer does it."""
    watch.begins(1, 0)
    with ExitStack() as around:
        around.enter_context(watch.around(1))
        out = strategy.module(torch.ones(2, 3))
        (Broken.apply(out) if broken else out).sum().backward()


def test_a_failed_backward_is_told_to_what_watches_it_and_leaves_no_hook(
    watched: tuple[GradientWatch, HookedStrategy],
) -> None:
    watch, strategy = watched
    with pytest.raises(RuntimeError, match="out of memory in backward"):
        backward(watch, strategy, broken=True)
    assert [str(error) for error in strategy.seen] == ["out of memory in backward"]
    assert not strategy.module.weight._backward_hooks
    backward(watch, strategy, broken=False)
    assert strategy.seen[1:] == [None] and not strategy.module.weight._backward_hooks


def test_a_context_that_cannot_be_entered_is_not_left(watched: tuple[GradientWatch, HookedStrategy]) -> None:
    watch, strategy = watched

    @contextmanager
    def refuses(*_: Any, **__: Any) -> Iterator[None]:
        raise RuntimeError("no hook can be set")
        yield

    strategy.watch_batches = refuses  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no hook can be set"):
        backward(watch, strategy, broken=False)
    assert strategy.seen == []


def test_a_gpu_holds_no_gradients_in_its_first_step(
    watched: tuple[GradientWatch, HookedStrategy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step needs is not known before one has been trained, however much memory seems to be free."""
    watch, strategy = watched
    watch._device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)
    for step in (1, 2):
        watch.begins(step, 0)
        with watch.around(step):
            pass
    assert strategy.kept == [False, True]


def hooks_of(module: torch.nn.Module) -> int:
    """Hooks of all modules and parameters."""
    modules = [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in module.modules()]
    return sum(modules) + sum(len(one._backward_hooks or ()) for one in module.parameters())


def test_the_search_for_a_fault_takes_its_hooks_away_when_the_pass_fails() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    with pytest.raises(RuntimeError, match="out of memory in backward"), NonfiniteSearch(module) as watch:
        assert hooks_of(module) == 10
        Broken.apply(module(torch.ones(2, 3))).sum().backward()
    assert hooks_of(module) == 0 and watch.found is None


def test_the_search_for_a_fault_takes_its_hooks_away_when_one_cannot_be_set() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))

    def refuses(hook: Any) -> None:
        raise RuntimeError("no hook can be set")

    last = SimpleNamespace(requires_grad=True, register_hook=refuses)
    named = [*module.named_parameters(), ("1.extra", last)]
    module.named_parameters = lambda *_, **__: iter(named)  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="no hook can be set"):
        NonfiniteSearch(module).__enter__()
    del module.named_parameters
    assert hooks_of(module) == 0
