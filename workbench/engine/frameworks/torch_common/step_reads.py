"""What a cell's optimizer reads in its own step, where the plan has it elsewhere or in parts.

An optimizer that clips ``model.parameters()`` in its ``step`` sees no gradients under a plan that updates copies of the
weights, and those of its rank's part of the model under one that splits it. Nothing would raise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from workbench.errors import ConfigError

#: steps in which an optimizer is looked at
_STEPS = 3
_READS_GRADIENT: Any = vars(torch._C.TensorBase)["grad"].__get__
_REDUCTIONS = frozenset(("norm", "vector_norm", "linalg_vector_norm", "_foreach_norm", "sum", "mean", "std", "dot"))


class StepReads:
    """Looks at the first steps of ``optimizer``, from now to ``close``.

    ``weights``: of the model. ``has_copies``: their gradients are not in ``.grad`` when it steps. ``tp``, ``pp``: of
    the plan. In a step that reads what is not there, or takes the norm of a part for that of the whole, ``ConfigError``
    is raised where it does so.
    """

    def __init__(
        self, optimizer: Any, weights: Iterable[torch.Tensor], *, has_copies: bool, tp: int = 1, pp: int = 1
    ) -> None:
        self._optimizer = optimizer
        self._before = vars(optimizer).get("step")
        self._weights = list(weights)
        self._has_copies, self._has_shards, self._is_split = has_copies, tp > 1, tp * pp > 1
        self._left = _STEPS
        compute = optimizer.step
        self._looks = (has_copies or self._is_split) and not hasattr(compute, "_torchdynamo_orig_callable")
        if self._looks:
            # what a schedule has noted on the method stays on it
            optimizer.step = functools.wraps(compute)(functools.partial(self._step, compute))

    def _step(self, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._left:
            return compute(*args, **kwargs)
        self._left -= 1
        with self._whole_norms_refused(), _Look(self._check):
            return compute(*args, **kwargs)

    def _check(self, function: Any, args: tuple[Any, ...]) -> None:
        if self._has_copies:
            if function == _READS_GRADIENT and any(args[0] is weight for weight in self._weights):
                self._refuse("reads .grad of the model's weights, which is empty, as the plan updates copies of them")
        elif self._has_shards and getattr(function, "__name__", "") in _REDUCTIONS:
            own = {w.grad.untyped_storage().data_ptr() for w in self._weights if w.grad is not None}
            read = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor) and leaf.numel() > 1]
            if any(tensor.untyped_storage().data_ptr() in own for tensor in read):
                self._refuse("adds up the elements of gradients, of which each rank has a part")

    @contextmanager
    def _whole_norms_refused(self) -> Iterator[None]:
        """Inside, torch's norm of several gradients is refused where a rank holds the gradients of its part only."""
        original = clip_grad._get_total_norm

        def refused(*args: Any, **kwargs: Any) -> Any:
            self._refuse("clips gradients by their norm, but each rank has those of its part of the model")

        if self._is_split:
            clip_grad._get_total_norm = refused
        try:
            yield
        finally:
            clip_grad._get_total_norm = original

    def _refuse(self, what: str) -> None:
        raise ConfigError(
            f"{type(self._optimizer).__name__}.step {what}: its update would differ from that of one process. "
            "Use --plugin ddp, or leave it out of the step (--clip clips gradients under every plan)",
            field="optimizer",
        )

    def close(self) -> None:
        """Give the optimizer its own ``step`` back."""
        if self._looks:
            vars(self._optimizer).pop("step", None)
            if self._before is not None:
                self._optimizer.step = self._before
            self._looks = False


class _Look(TorchFunctionMode):
    """Lets ``check`` see every function of torch and its arguments before it is called."""

    def __init__(self, check: Callable[[Any, tuple[Any, ...]], None]) -> None:
        super().__init__()
        self._check = check

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._check(func, args)
        return func(*args, **(kwargs or {}))
