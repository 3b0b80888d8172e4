"""What happens to gradients just before an optimizer of a ``train_step`` steps with them.

They are averaged where they were not yet, those of frozen layers are dropped, their norm is taken, and they are
clipped. Where they are not finite, they are dropped too, so that nothing is updated: the gradients are the same on all
ranks, and so is this decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from workbench.engine.frameworks.torch_common.steps.reduction import StepReduction
from workbench.engine.watch.torch.tensor_statistics import norms
from workbench.errors import ConfigError


class Updates:
    """Stands before every step of an optimizer inside ``watching``. ``known``: ids of the parameters that are trained.
    ``enter``: told the phase that begins.

    ``clip``: largest norm of the gradients that an optimizer steps with (0: any). ``frozen``: ids of parameters that
    are left as they are. ``count``: steps of optimizers in the last ``watching``; ``left_out``: how many of them
    updated nothing, as their gradients were not finite.
    """

    def __init__(self, reduction: StepReduction, known: set[int], *, enter: Callable[[str], object]) -> None:
        self._reduction = reduction
        self._known = known
        self._enter = enter
        self.clip = 0.0
        self.frozen: frozenset[int] = frozenset()
        self.count = 0
        self.left_out = 0
        #: id of a parameter -> norm of the gradient that it was last updated with in ``watching``
        self.norms: dict[int, float] = {}
        #: shown the parameters that are about to be updated: gradients are reduced and not clipped
        self.look: Callable[[list[torch.Tensor]], object] | None = None

    def squared_norm(self) -> float:
        """Of the gradients that the last ``watching`` updated with: of several updates of a parameter the last."""
        return sum(norm**2 for norm in self.norms.values())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While entered, steps of all optimizers of this process are those of the training."""
        self.count = self.left_out = 0
        self.norms = {}
        before, after = register_optimizer_step_pre_hook(self._before), register_optimizer_step_post_hook(self._after)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self._check_known(optimizer)
        self.count += 1
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._enter("communication")
            self._reduction.before_update()
            self._enter("optimizer")
            self._prepare(optimizer)
            return None
        # the optimizer asks for the gradients itself, maybe several times
        wrapped = self._preparing(optimizer, closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._enter("forward")

    def _preparing(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        def closing() -> Any:
            loss = closure()
            self._prepare(optimizer)
            return self._reduction.mean_of(loss)  # a line search decides by it, on all ranks alike

        return closing

    def _check_known(self, optimizer: torch.optim.Optimizer) -> None:
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if any(id(parameter) not in self._known for parameter in held):
            raise ConfigError(
                f"train_step steps a {type(optimizer).__name__} with parameters that neither model nor optimizer of "
                "the cell holds, so they are not reduced over ranks: name all, as in optimizer = [opt_g, opt_d] or "
                'optimizer = {"g": opt_g, "d": opt_d}',
                field="optimizer",
            )

    @torch.no_grad()
    def _prepare(self, optimizer: torch.optim.Optimizer) -> None:
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter in held:
            if id(parameter) in self.frozen:
                parameter.grad = None
        updated = [parameter for parameter in held if parameter.grad is not None]
        if not updated:
            return
        if self.look is not None:
            self.look(updated)
        gradients = [parameter.grad for parameter in updated]
        found = _norms(gradients)
        self.norms |= zip(map(id, updated), found, strict=True)
        norm = math.sqrt(sum(each**2 for each in found))
        if not math.isfinite(norm):
            self.left_out += 1
            for parameter in held:
                parameter.grad = None
        elif 0 < self.clip < norm:
            for gradient in gradients:
                gradient.mul_(self.clip / (norm + 1e-6))


def _norms(gradients: list[torch.Tensor]) -> list[float]:
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    real = [torch.view_as_real(gradient) if gradient.is_complex() else gradient for gradient in dense]
    return norms(real).tolist()
