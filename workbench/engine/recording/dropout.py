"""Dropout, and other random numbers of a model: switched off where that can be done, found where it cannot."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.dropout import _DropoutNd

from workbench.engine.base.names import users_name

#: names under which models of the transformers library and others keep the share that their forward pass drops
_SHARE = re.compile(r"(^|_)(drop|dropout|layerdrop|drop_path|drop_prob|droppath)(_|$)|dropout$|_pdrop$")


def switch_off_dropout(model: torch.nn.Module) -> list[str]:
    """Set the share that is dropped to 0, in modules and in their attributes; names of the modules that dropped."""
    changed = []
    for name, module, shares in list(_dropping(model)):
        for each in shares:
            setattr(module, each, 0.0)
        changed.append(f"{users_name(name)} ({type(module).__name__})".lstrip())
    return changed


def drops_out(model: torch.nn.Module) -> bool:
    """Whether modules of ``model`` drop a share of what they compute when they train."""
    return next(_dropping(model), None) is not None


def _dropping(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, list[str]]]:
    """Modules that drop something: name, module, and the attributes that hold the share."""
    for name, module in model.named_modules():
        found = ["p"] if isinstance(module, _DropoutNd) else []
        found += [each for each, value in vars(module).items() if isinstance(value, float) and _SHARE.search(each)]
        if any(getattr(module, each) > 0 for each in found):
            yield name, module, found


class DrawingModules:
    """Finds modules whose forward pass draws random numbers of torch. ``drew``: whether anything did so."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._before: dict[int, list[torch.Tensor]] = {}
        self.drew = False
        self.names: list[str] = []

    @contextmanager
    def watching(self, *, named: bool) -> Iterator[None]:
        """Around forward and backward. ``named``: the modules without children that draw are named."""
        handles = []
        for name, module in self._model.named_modules() if named else ():
            if not any(True for _ in module.children()):
                handles += [module.register_forward_pre_hook(self._begin), self._ending(users_name(name), module)]
        before = _states()
        try:
            yield
        finally:
            self.drew |= not _are_same(before, _states())
            for handle in handles:
                handle.remove()

    def _begin(self, module: torch.nn.Module, inputs: object) -> None:
        self._before[id(module)] = _states()

    def _ending(self, name: str, module: torch.nn.Module) -> torch.utils.hooks.RemovableHandle:
        def end(module: torch.nn.Module, inputs: object, outputs: object) -> None:
            before = self._before.pop(id(module), None)
            if before is not None and name not in self.names and not _are_same(before, _states()):
                self.names.append(name)

        return module.register_forward_hook(end)


def _states() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]


def _are_same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
