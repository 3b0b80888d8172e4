"""Where a loop that is not ours is: told by hooks on its model, its optimizer, backward passes and gradient clipping.

The hooks do nothing but tell ``LoopListener``; they change no tensor, and all of them are taken off again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.nn.utils import clip_grad
from torch.optim import optimizer as optimizers

from workbench.engine.observed.engine import Engine
from workbench.engine.observed.megatron import MegatronEngine

#: the functions of torch that scale gradients, and that compute by what, whatever they are called through (absent
#: before torch 2.6)
_CLIPS, _NORM = "_clip_grads_with_norm_", "_get_total_norm"


class LoopListener(Protocol):
    """Told where the loop is."""

    def forward_begins(self, batch: Any, training: bool) -> None:
        """The model is called with ``batch``, its arguments; ``training``: with gradients."""

    def forward_ends(self, output: Any, training: bool) -> None:
        """The model returns ``output``."""

    def backward_begins(self, loss: torch.Tensor) -> None:
        """``backward`` is called on a loss."""

    def backward_computed(self) -> None:
        """All gradients of a backward pass are computed, and some may still be reduced."""

    def backward_ends(self) -> None:
        """Nothing of a backward pass is left."""

    def clips(self, parameters: list[torch.Tensor], norm: torch.Tensor | None) -> None:
        """The gradients of ``parameters`` are about to be clipped by their L2 norm; None: by another one."""

    def optimizer_begins(self, optimizer: torch.optim.Optimizer | None, computed: bool) -> None:
        """An optimizer, ours or another, is about to step; None: the engine's. ``computed``: gradients are there, and
        are not computed by a closure within the step."""

    def closure_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """The closure that an optimizer's step was given has computed the gradients."""

    def optimizer_ends(self, optimizer: torch.optim.Optimizer | None) -> None:
        """An optimizer has stepped; None: the engine's."""


class _OfModule:
    """A hook of a module. Copies of the module, in memory (an average of the weights) or on disk, have one that does
    nothing: they are not observed."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> None:
        self._call(*args)

    def __deepcopy__(self, memo: Any) -> Any:
        return unobserved

    def __reduce__(self) -> Any:
        return _unobserved, ()


def unobserved(*args: Any) -> None:
    """The hook of a copy of an observed module."""


def _named(closure: Callable[[], Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"closure": closure} if "closure" in kwargs else {}


def _unobserved() -> Callable[..., None]:
    return unobserved


class LoopHooks:
    """Puts the hooks on when it is made; ``remove`` takes them off. An exception of the listener never reaches the
    loop: it is given to ``failed``, and the listener is told nothing more. ``reduces``: whether gradients are reduced,
    and ``backward_computed`` is to be told. ``engine``: the one that ``model`` is. ``spent_s``: the time of telling so
    far."""

    def __init__(
        self,
        listener: LoopListener,
        model: torch.nn.Module,
        *,
        failed: Callable[[Exception], object],
        reduces: bool = True,
        engine: Engine | None = None,
    ) -> None:
        self._reduces = reduces
        self._listener = listener
        self._failed = failed
        self._has_failed = False
        self.spent_s = 0.0
        self._undo: list[Callable[[], object]] = []
        self._depth = 0
        called = model if engine is None else engine.called
        before = called.register_forward_pre_hook(_OfModule(self._forward_begins), with_kwargs=True)
        after = called.register_forward_hook(_OfModule(self._forward_ends))
        self._undo += [before.remove, after.remove]
        if isinstance(engine, MegatronEngine):
            self._watch_reduction(engine, model)
        if engine is not None and engine.steps_by is not None:
            self._watch_engine(engine, model)
        else:
            for handle in (
                optimizers.register_optimizer_step_pre_hook(self._optimizer_begins),
                optimizers.register_optimizer_step_post_hook(self._optimizer_ends),
            ):
                self._undo.append(handle.remove)
        self._wrap(torch.Tensor, "backward", self._around_backward)
        self._norm: torch.Tensor | None = None  # the last that was computed
        self.sees_clipping = hasattr(clip_grad, _CLIPS) and hasattr(clip_grad, _NORM)
        if self.sees_clipping:
            self._wrap(clip_grad, _NORM, self._around_norm)
            self._wrap(clip_grad, _CLIPS, self._around_clipping)

    def _watch_engine(self, engine: Engine, model: torch.nn.Module) -> None:
        """The steps that an engine takes are those of its own optimizer, around torch's."""

        def around_step(before: Callable[..., Any]) -> Callable[..., Any]:
            def step(*args: Any, **kwargs: Any) -> Any:
                self._tell(self._listener.optimizer_begins, None, True)
                found = before(*args, **kwargs)
                engine.stepped(found)
                if not engine.skipped():
                    self._tell(self._listener.optimizer_ends, None)
                return found

            return step

        def around_clipping(before: Callable[..., Any]) -> Callable[..., Any]:
            def clip(*args: Any, **kwargs: Any) -> Any:
                self._tell(self._listener.clips, [], None)
                return before(*args, **kwargs)

            return clip

        self._wrap(engine.steps_by, "step", around_step)
        if engine.clips_by:
            self._wrap(model, engine.clips_by, around_clipping)

    def _watch_reduction(self, engine: MegatronEngine, model: torch.nn.Module) -> None:
        """Megatron's schedules call backward by a function of their own, and its loops reduce gradients after it."""

        def around_reduction(before: Callable[..., Any]) -> Callable[..., Any]:
            def finish(*args: Any, **kwargs: Any) -> Any:
                self._tell(self._listener.backward_computed)
                try:
                    return before(*args, **kwargs)
                finally:
                    self._tell(self._listener.backward_ends)

            return finish

        def around_scheduled(before: Callable[..., Any]) -> Callable[..., Any]:
            def backward_step(received: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
                output = outputs[0] if isinstance(outputs, list) else outputs
                return self._backward(output, lambda: before(received, outputs, *args, **kwargs), engine.loss_scale())

            return backward_step

        self._wrap(model, "finish_grad_sync", around_reduction)
        if engine.schedules is not None:
            self._wrap(engine.schedules, "backward_step", around_scheduled)

    def remove(self) -> None:
        """Take all hooks off."""
        while self._undo:
            self._undo.pop()()

    def _tell(self, told: Callable[..., None], *what: Any) -> None:
        if not self._undo or self._has_failed:
            return
        began = time.perf_counter()
        try:
            told(*what)
        except Exception as error:  # ours, and not the loop's; torch may be going through the hooks, so they stay
            self._has_failed = True
            self._failed(error)
        self.spent_s += time.perf_counter() - began

    def _wrap(self, owner: Any, name: str, around: Callable[[Any], Any]) -> None:
        before = getattr(owner, name)
        ours = functools.wraps(before)(around(before))
        setattr(owner, name, ours)

        def undo() -> None:
            if getattr(owner, name) is ours:  # whoever wrapped it meanwhile keeps calling ours, which then only passes
                setattr(owner, name, before)

        self._undo.append(undo)

    def _forward_begins(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        self._tell(self._listener.forward_begins, kwargs or args, module.training and torch.is_grad_enabled())

    def _forward_ends(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._tell(self._listener.forward_ends, output, module.training and torch.is_grad_enabled())

    def _optimizer_begins(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """``args`` have the optimizer itself first. With a closure, the step gets ours around it."""
        given = kwargs.get("closure", args[1] if len(args) > 1 else None)
        self._tell(self._listener.optimizer_begins, optimizer, given is None)
        if given is None:
            return None

        def closure() -> Any:
            found = given()
            self._tell(self._listener.closure_ends, optimizer)
            return found

        return (args[0], closure, *args[2:]) if len(args) > 1 else args, {**kwargs, **_named(closure, kwargs)}

    def _optimizer_ends(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._tell(self._listener.optimizer_ends, optimizer)

    def _around_backward(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def backward(loss: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._backward(loss, lambda: before(loss, *args, **kwargs))

        return backward

    def _backward(self, loss: torch.Tensor, compute: Callable[[], Any], scale: float = 1.0) -> Any:
        """The backward pass ``compute`` of ``loss``, which it multiplies by ``scale``."""
        if not self._undo or not loss.requires_grad or self._depth:
            return compute()
        self._tell(self._listener.backward_begins, loss if scale == 1.0 else loss.detach() * scale)
        handle = loss.register_hook(self._computes) if self._reduces else None
        self._depth += 1
        try:
            return compute()
        finally:
            self._depth -= 1
            if handle is not None:
                handle.remove()
            self._tell(self._listener.backward_ends)

    def _computes(self, _: torch.Tensor) -> None:
        """A callback queued when backward begins runs after all gradients, and before the one in which DDP waits."""
        torch.autograd.Variable._execution_engine.queue_callback(self._computed)

    def _computed(self) -> None:
        self._tell(self._listener.backward_computed)

    def _around_norm(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def norm(tensors: Any, norm_type: Any = 2.0, *args: Any, **kwargs: Any) -> Any:
            found = before(tensors, norm_type, *args, **kwargs)
            self._norm = found if float(norm_type) == 2.0 else None
            return found

        return norm

    def _around_clipping(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def clip(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
            listed = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
            norm, self._norm = self._norm, None
            self._tell(self._listener.clips, listed, norm if norm is total_norm else None)
            return before(listed, max_norm, total_norm, *args, **kwargs)

        return clip
