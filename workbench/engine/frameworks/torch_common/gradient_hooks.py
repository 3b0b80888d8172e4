"""A cell's own hooks on gradients and on steps of its optimizer: they act as in one process, or are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.engine.base.names import users_name
from workbench.errors import ConfigError

GradientHook = Callable[[torch.Tensor], torch.Tensor | None]


class GradientHooks:
    """Hooks on parameters (``register_hook`` and ``register_post_accumulate_grad_hook``) that were taken off.

    In one process they act once a step, on the gradient of the whole batch. During backward each rank has the gradient
    of its own samples, so ``run`` calls them when gradients are reduced.
    """

    def __init__(self) -> None:
        self._before: dict[torch.Tensor, dict[int, GradientHook]] = {}
        self._after: dict[torch.Tensor, dict[int, Callable[[torch.Tensor], None]]] = {}

    def take(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Take the hooks off ``parameters``; ``give_back`` undoes it."""
        for parameter in parameters:
            before, after = parameter._backward_hooks, parameter._post_accumulate_grad_hooks  # type: ignore[attr-defined]
            if before:
                self._before[parameter] = dict(before)
                before.clear()
            if after:
                self._after[parameter] = dict(after)
                after.clear()

    def give_back(self) -> None:
        """Put the hooks back on their parameters."""
        for parameter, hooks in self._before.items():
            parameter._backward_hooks.update(hooks)  # type: ignore[union-attr]
        for parameter, after in self._after.items():
            parameter._post_accumulate_grad_hooks.update(after)  # type: ignore[attr-defined]
        self._before, self._after = {}, {}

    def __bool__(self) -> bool:
        return bool(self._before or self._after)

    @property
    def hooked(self) -> list[torch.Tensor]:
        """The parameters with hooks on their gradient."""
        return list(self._before)

    def hook(self, parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """What the hooks of ``parameter`` make of its gradient."""
        for hook in self._before[parameter].values():
            changed = hook(gradient)
            gradient = gradient if changed is None else changed
        return gradient

    @torch.no_grad()
    def run(self, scale: float) -> None:
        """Call all hooks, with the reduced gradients in ``.grad``, which are ``scale`` times as large."""
        for parameter in self._before:
            if parameter.grad is not None:
                parameter.grad = self.hook(parameter, parameter.grad / scale) * scale
        for parameter, hooks in self._after.items():
            if parameter.grad is not None:
                for hook in hooks.values():
                    hook(parameter)


class StepHooks:
    """Hooks after steps of an optimizer that updates copies of the weights: taken off, and called by ``run`` when the
    weights themselves are updated."""

    def __init__(self) -> None:
        self._optimizer: Any = None
        self._hooks: dict[int, Callable[..., None]] = {}

    def take(self, optimizer: Any) -> None:
        """Take the hooks off; ``give_back`` undoes it."""
        self._optimizer = optimizer
        own = getattr(optimizer, "_optimizer_step_post_hooks", {})
        self._hooks = dict(own)
        own.clear()

    def give_back(self) -> None:
        """Put the hooks back on the optimizer."""
        if self._hooks:
            self._optimizer._optimizer_step_post_hooks.update(self._hooks)
        self._hooks = {}

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def run(self) -> None:
        """Call the hooks as after a step without arguments."""
        for hook in self._hooks.values():
            hook(self._optimizer, (), {})


def check_hooks(spec: TrainSpec, model: torch.nn.Module, optimizer: Any, *, has_copies: bool) -> None:
    """Refuse, with ``ConfigError``, hooks that would not see what they see in one process: the whole gradient of a
    weight, and gradients and weights in ``.grad`` and ``.data``.

    ``has_copies``: the optimizer updates copies of the weights, of which it gets the gradients.
    """
    is_split = spec.plan.tp * spec.plan.pp > 1
    plan = f"--tp {spec.plan.tp} --pp {spec.plan.pp}" if is_split else f"--plugin {spec.plan.plugin}"
    for name, parameter in model.named_parameters():
        named = users_name(name)
        if is_split and (parameter._backward_hooks or parameter._post_accumulate_grad_hooks):  # type: ignore[attr-defined]
            raise ConfigError(
                f"{named} has a gradient hook, which {plan} cannot call with the whole gradient: use --plugin ddp",
                field="model",
            )
        if has_copies and parameter._post_accumulate_grad_hooks:  # type: ignore[attr-defined]
            raise ConfigError(
                f"{named} has a hook after its gradient is accumulated, where {plan} has no .grad: use --plugin ddp, "
                "or register_hook",
                field="model",
            )
    before = getattr(optimizer, "_optimizer_step_pre_hooks", None)
    after = getattr(optimizer, "_optimizer_step_post_hooks", None)
    if (before and (is_split or has_copies)) or (after and is_split):
        when = "before" if before else "after"
        raise ConfigError(
            f"the optimizer has a hook {when} its steps, which under {plan} would see parts of the weights or no "
            "gradients: use --plugin ddp (--clip clips gradients under every plan)",
            field="optimizer",
        )


def modules_with_hooks(model: torch.nn.Module) -> Iterator[str]:
    """Names of the modules that have a backward hook of the cell's."""
    for name, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            yield users_name(name) or "(model)"


def remark_on_module_hooks(spec: TrainSpec, model: torch.nn.Module) -> str:
    """What to tell of backward hooks of modules where a batch is cut into pieces; "" if nothing."""
    names = list(modules_with_hooks(model))
    if not names or spec.pieces == 1:
        return ""
    return (
        f"{', '.join(names[:8])}: a backward hook sees the gradients of the samples of its rank and gradient "
        "accumulation step only, at another scale than in one process. A hook that multiplies them by a number is "
        "right; one that clips or normalises them belongs on a parameter (register_hook)"
    )
