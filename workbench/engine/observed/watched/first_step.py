"""Finds out, without changing the script, when its optimizers step and which model they train."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_MODULE = "torch.optim"


class WhenImported(MetaPathFinder):
    """Calls ``then`` in the thread that imports ``torch.optim``, once that is done."""

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then

    def begin(self) -> None:
        """Wait for the import."""
        sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        """As of ``MetaPathFinder``: finds nothing but ``torch.optim``."""
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        found = PathFinder.find_spec(name, path, target)
        if found is not None and found.loader is not None:
            loader: Any = found.loader
            execute = loader.exec_module

            def execute_and_tell(module: ModuleType) -> None:
                execute(module)
                self._then()

            loader.exec_module = execute_and_tell
        return found


def after_steps(call: Callable[[Any], object]) -> None:
    """Call ``call(optimizer)`` after each step of every optimizer made from now on, outside of the hooks of torch, so
    that it may put hooks on and take them off."""
    from torch.optim import Optimizer

    wrapped = Optimizer.profile_hook_step

    def profile_hook_step(function: Callable[..., Any]) -> Callable[..., Any]:
        step = wrapped(function)

        @functools.wraps(step)
        def seen(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            found = step(optimizer, *args, **kwargs)
            call(optimizer)
            return found

        return seen

    Optimizer.profile_hook_step = staticmethod(profile_hook_step)  # type: ignore[method-assign,assignment]


def model_of(optimizer: Any) -> Any:
    """The outermost module with a ``forward`` that holds most of what ``optimizer`` updates; None where none does."""
    import torch

    from workbench.engine.observed.model import in_process

    updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    held = [
        (sum(id(parameter) in updated for parameter in module.parameters()), module)
        for module in in_process(torch.nn.Module)
    ]
    most = max((count for count, _ in held), default=0)
    forward = torch.nn.Module.forward
    best = [module for count, module in held if count == most > 0 and type(module).forward is not forward]
    inside = {id(inner) for module in best for inner in module.modules() if inner is not module}
    return next((module for module in best if id(module) not in inside), None)
