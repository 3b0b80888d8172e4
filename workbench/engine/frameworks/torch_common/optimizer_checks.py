"""Checks of an optimizer and its schedule before the first step, so that no raw error comes out of it."""

from __future__ import annotations

import copy
import inspect
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from workbench.errors import ConfigError

#: optimizers of torch whose update of an element depends on this element alone
_ELEMENTWISE = frozenset(
    (
        "SGD",
        "Adam",
        "AdamW",
        "NAdam",
        "RAdam",
        "Adamax",
        "RMSprop",
        "Adagrad",
        "Adadelta",
        "ASGD",
        "Rprop",
        "SparseAdam",
    )
)
#: what a schedule may be stepped after
SCHEDULE_UNITS = ("step", "epoch", "evaluation")
_TRIAL_STEPS = 3
#: large enough for optimizers that treat small weights in another way, as those that factor moments do
_SHAPE = (160, 144)
_TRIAL_LR = 1e-3
#: what a trial does not copy: the optimizer's own state, and hooks of the cell
_NOT_COPIED = ("param_groups", "state", "step", "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def check_optimizer(optimizer: Any) -> None:
    """Refuse, with ``ConfigError``, what cannot be stepped without arguments, or is no single optimizer."""
    if isinstance(optimizer, list | tuple | dict):
        raise ConfigError(
            f"optimizer is a {type(optimizer).__name__}: use one optimizer with several parameter groups, such as "
            "torch.optim.AdamW([{'params': a, 'lr': 1e-3}, {'params': b, 'lr': 1e-4}])",
            field="optimizer",
        )
    name = type(optimizer).__name__
    if not hasattr(optimizer, "param_groups") or not callable(getattr(optimizer, "step", None)):
        raise ConfigError(f"optimizer is a {name}: it must be a torch.optim.Optimizer", field="optimizer")
    if isinstance(optimizer, torch.optim.LBFGS) or _arguments_of_step(optimizer):
        raise ConfigError(
            f"{name}.step needs a closure that computes the loss again, which training over ranks does not have: use "
            "an optimizer whose step() takes no argument, such as torch.optim.AdamW",
            field="optimizer",
        )
    if any(group.get("lr") is None for group in optimizer.param_groups):
        raise ConfigError(
            f"the {name} has no learning rate (lr=None, it makes one of its own): give it a number, for Adafactor of "
            "the transformers library with relative_step=False, scale_parameter=False, warmup_init=False",
            field="optimizer",
        )


def check_scheduler(scheduler: Any, every: Any = "step", metric: Any = "") -> None:
    """Refuse, with ``ConfigError``, an ``lr_scheduler`` that cannot be stepped after each ``every``: with the value
    that ``metric`` names, or without an argument."""
    if every not in SCHEDULE_UNITS or (metric and every == "step") or (every == "evaluation" and not metric):
        known = '"epoch" or "evaluation"' if metric else '"step" or "epoch"'
        raise ConfigError(f"lr_scheduler_every is {every!r}: it must be {known}", field="lr_scheduler_every")
    if not isinstance(metric, str):
        raise ConfigError(
            f"lr_scheduler_metric is a {type(metric).__name__}: it must name a validation metric, such as "
            '"validation_loss"',
            field="lr_scheduler_metric",
        )
    if scheduler is None:
        return
    if not callable(getattr(scheduler, "step", None)):
        raise ConfigError(
            f"lr_scheduler is a {type(scheduler).__name__}: it must have a method step()", field="lr_scheduler"
        )
    needed = _arguments_of_step(scheduler)
    name = type(scheduler).__name__
    if needed and not (metric and len(needed) == 1):
        raise ConfigError(
            f"{name}.step needs {', '.join(needed)}: name a validation metric in the cell, lr_scheduler_metric = "
            '"validation_loss", to step it with that value after each evaluation; or use a schedule over steps',
            field="lr_scheduler",
        )
    if metric and not needed:
        raise ConfigError(
            f"lr_scheduler_metric = {metric!r}, but {name}.step takes no value: leave the name out, or use "
            "ReduceLROnPlateau",
            field="lr_scheduler_metric",
        )


def _arguments_of_step(stepped: Any) -> list[str]:
    """Names of the arguments without which ``stepped.step`` cannot be called.

    The method of the class is asked, as a schedule wraps that of its optimizer.
    """
    try:
        parameters = list(inspect.signature(type(stepped).step).parameters.values())[1:]
    except (AttributeError, TypeError, ValueError):  # it has no signature that Python knows
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        item.name
        for item in parameters
        if item.default is item.empty and (item.kind in positional or item.kind == item.KEYWORD_ONLY)
    ]


def is_elementwise(optimizer: Any, cut: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether updating a part of a weight, as ``cut`` takes it, gives the part of the updated weight.

    Tried for each parameter group with random weights and gradients and copies of the optimizer, which, like torch's
    random generators, is left as it is. An optimizer that fails on the part, or cannot be copied, is not elementwise.
    """
    if type(optimizer).__module__.startswith("torch.optim.") and type(optimizer).__name__ in _ELEMENTWISE:
        return True
    with _random_numbers() as draw:
        return all(_updates_alike(optimizer, group, cut, draw) for group in optimizer.param_groups)


def looks_across_weights(optimizer: Any) -> bool:
    """Whether updating a weight gives something else when the optimizer holds another one too.

    Tried as by ``is_elementwise``. An optimizer that cannot be tried is taken for one that does not.
    """
    if type(optimizer).__module__.startswith("torch.optim.") and type(optimizer).__name__ in _ELEMENTWISE:
        return False
    with _random_numbers() as draw:
        return any(_differs_with_others(optimizer, group, draw) for group in optimizer.param_groups)


@contextmanager
def _random_numbers() -> Iterator[Callable[[], torch.Tensor]]:
    """A function that draws weights; all random generators are left as they are."""
    generator = torch.Generator().manual_seed(0)
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield lambda: torch.randn(_SHAPE, generator=generator)
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _updates_alike(
    optimizer: Any, group: dict[str, Any], cut: Callable[[torch.Tensor], torch.Tensor], draw: Callable[[], torch.Tensor]
) -> bool:
    weight, gradients = draw(), [draw() for _ in range(_TRIAL_STEPS)]
    try:
        (whole,) = _updated(optimizer, group, [weight], [[gradient] for gradient in gradients])
        (part,) = _updated(optimizer, group, [cut(weight)], [[cut(gradient)] for gradient in gradients])
    except Exception:  # whatever an optimizer raises for a part of a weight, it cannot be given one
        return False
    moved = not torch.equal(whole, weight)  # else it updates something that the copy does not have
    return moved and _alike(cut(whole) - cut(weight), part - cut(weight))


def _differs_with_others(optimizer: Any, group: dict[str, Any], draw: Callable[[], torch.Tensor]) -> bool:
    weight, other, gradients = draw(), 3 * draw(), [[draw(), draw()] for _ in range(_TRIAL_STEPS)]
    try:
        (alone,) = _updated(optimizer, group, [weight], [pair[:1] for pair in gradients])
        among, _ = _updated(optimizer, group, [weight, other], gradients)
    except Exception:  # whatever an optimizer raises that a trial cannot satisfy, training will tell
        return False
    return not _alike(alone - weight, among - weight)


def _alike(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-3, atol=1e-9)


def _updated(
    optimizer: Any, group: dict[str, Any], weights: list[torch.Tensor], gradients: list[list[torch.Tensor]]
) -> list[torch.Tensor]:
    """The weights after a step with each of the lists of gradients."""
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    trial = _copy_for(optimizer, {**{k: v for k, v in group.items() if k != "params"}, "params": parameters})
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        trial.step()
    return [parameter.detach() for parameter in parameters]


def _copy_for(optimizer: Any, group: dict[str, Any]) -> Any:
    """A copy of ``optimizer`` that has not stepped yet, for one parameter group; it shares no state."""
    trial = object.__new__(type(optimizer))
    memo = {id(p): p for own in optimizer.param_groups for p in own["params"]}  # weights themselves are not copied
    others = {name: value for name, value in vars(optimizer).items() if name not in _NOT_COPIED}
    trial.__dict__.update(copy.deepcopy(others, memo))
    trial.param_groups = [copy.deepcopy(group, {id(p): p for p in group["params"]})]
    trial.param_groups[0]["lr"] = group["lr"] or _TRIAL_LR  # a schedule may begin with 0
    trial.state = defaultdict(dict)
    trial._optimizer_step_pre_hooks, trial._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
    return trial


def check_parts(optimizer: Any, plugin: str, *, tp: int, pp: int, has_slices: bool) -> None:
    """Refuse, with ``ConfigError``, an optimizer that looks at whole weights where ranks hold parts of them, or at
    several weights where ranks hold some of them.

    ``has_slices``: each rank updates a flat slice of every weight (ZeRO). ``tp``: weights are split into so many.
    ``pp``: weights are spread over so many stages.
    """
    cuts: list[Callable[[torch.Tensor], torch.Tensor]] = []
    if has_slices:
        cuts.append(lambda weight: weight.flatten()[: weight.numel() // 2])
    if tp > 1:
        cuts += [lambda weight: weight[: len(weight) // 2], lambda weight: weight[:, : weight.shape[1] // 2]]
    if not all(is_elementwise(optimizer, cut) for cut in cuts):
        looks_at = "whole weights"
        why = "updates a slice of each weight" if has_slices else f"holds a part of each weight (--tp {tp})"
    elif pp > 1 and looks_across_weights(optimizer):
        looks_at, why = "several weights at once", f"holds those of its stage (--pp {pp})"
    else:
        return
    raise ConfigError(
        f"{type(optimizer).__name__} reads {looks_at}, but under --plugin {plugin} each rank {why}: the update "
        "would differ from that of one process. Use --plugin ddp",
        field="optimizer",
    )
