"""Averages gradients over replicas while a cell's ``train_step`` runs: after every backward pass.

A gradient that is added to is ``before + own``, and ``before`` is the same on all ranks. A mean of these sums, weighted
by the samples of each rank, is ``before`` plus the mean of what is new, so every backward pass may be reduced as it
ends, whatever was accumulated before: several models, a retained graph, a penalty on gradients, a closure. What
``torch.autograd.grad`` returns is a rank's own; it is averaged when an optimizer steps with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from workbench.engine.frameworks.torch_common.ddp_reduction import gradient_buckets, gradient_kind, zero_gradient
from workbench.engine.frameworks.torch_common.exchange import all_reduce_uncounted
from workbench.errors import ConfigError

#: attribute of a reduced gradient: its version then
_REDUCED = "_workbench_reduced"


class _Moment(IntEnum):
    """Where ranks meet in a ``train_step``."""

    BACKWARD = 1
    UPDATE = 2
    END = 3


_MOMENTS = {
    _Moment.BACKWARD: "a backward pass",
    _Moment.UPDATE: "a step of an optimizer",
    _Moment.END: "the end of train_step",
}


class StepReduction:
    """Reduces the gradients of ``parameters`` (name -> parameter), which every rank holds whole.

    ``enter``: told the phase that begins. ``tell``: as ``Strategy.tell``. Each reduction begins with a message that
    says which gradients are new on any rank, so parameters that a pass does not use on some ranks are no fault; a rank
    that is elsewhere in its ``train_step`` ends all ranks with ``ConfigError``.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        *,
        ranks: int,
        device: torch.device,
        enter: Callable[[str], object],
        tell: Callable[[str, str], object],
    ) -> None:
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._ranks = ranks
        self._device = device
        self._enter = enter
        self._tell = tell
        self._depth = 0
        #: this rank's samples as a share of the global batch
        self.share = 1.0

    @contextmanager
    def around(self, samples: int) -> Iterator[None]:
        """While entered, every backward pass is reduced. ``samples``: of this rank (0: a stand-in). Collective."""
        self.share = self._share_of(samples)
        original = torch.autograd.backward  # ``Tensor.backward`` calls it too
        torch.autograd.backward = self._reducing(original)
        try:
            yield
            self._meet(_Moment.END)
        finally:
            torch.autograd.backward = original

    def _share_of(self, samples: int) -> float:
        if self._ranks == 1:
            return 1.0
        total = torch.tensor([float(samples)], dtype=torch.float64, device=self._device)
        all_reduce_uncounted(total)
        return samples / float(total) if float(total) else 1.0 / self._ranks

    def _reducing(self, original: Callable[..., None]) -> Callable[..., None]:
        def backward(*args: Any, **kwargs: Any) -> None:
            if self._depth:  # a checkpoint that recomputes runs a pass of its own inside of one
                original(*args, **kwargs)
                return
            self._enter("backward")
            self._depth += 1
            try:
                original(*args, **kwargs)
            finally:
                self._depth -= 1
            self._enter("communication")
            self._reduce(_Moment.BACKWARD)
            self._enter("forward")

        return backward

    def before_update(self) -> None:
        """Reduce the gradients that the cell set by hand, as an optimizer is about to step. Collective."""
        self._reduce(_Moment.UPDATE)

    def mean_of(self, loss: Any) -> Any:
        """The loss of the global batch, of that of this rank's samples; what is no number stays. Collective."""
        if self._ranks == 1 or not isinstance(loss, torch.Tensor | int | float):
            return loss
        total = torch.as_tensor(loss, device=self._device).detach().double().reshape(1)
        total = total * self.share if self.share else torch.zeros_like(total)
        all_reduce_uncounted(total)
        return total.to(loss.dtype).reshape(loss.shape) if isinstance(loss, torch.Tensor) else float(total)

    def forget(self) -> None:
        """Clear all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def _reduce(self, moment: _Moment) -> None:
        kinds = self._meet(moment)
        chosen = [index for index, kind in enumerate(kinds) if kind]
        if not chosen:
            return
        if moment is _Moment.UPDATE and self._ranks > 1:
            self._tell_of_gradients_by_hand(chosen)
        with torch.no_grad():
            gradients = [self._gradient(self._parameters[index], kinds[index]) for index in chosen]
            if self._ranks > 1:
                _sum_over_ranks(gradients, self.share)
        for gradient in gradients:
            setattr(gradient, _REDUCED, gradient._version)

    def _meet(self, moment: _Moment) -> list[int]:
        """The kinds of gradients that are new on any rank (0: none), by parameter."""
        own = [self._kind(parameter, moment) for parameter in self._parameters]
        if self._ranks == 1:
            return own
        message = torch.tensor([*own, moment, -moment], dtype=torch.int32, device=self._device)
        all_reduce_uncounted(message, dist.ReduceOp.MAX)
        *kinds, last, first = message.tolist()
        if last != -first:
            raise ConfigError(
                f"ranks are at different places of train_step: {_MOMENTS[_Moment(-first)]} on one, "
                f"{_MOMENTS[_Moment(last)]} on another. Every rank must make as many backward passes and optimizer "
                "steps as the others, whatever its samples are: add up losses of single samples, and call backward "
                "once",
                field="train_step",
            )
        return kinds

    def _kind(self, parameter: torch.nn.Parameter, moment: _Moment) -> int:
        """Of a gradient that is to be reduced now; 0 for any other. What was changed in place after a reduction, as
        clipping does, was changed alike on all ranks."""
        gradient = parameter.grad
        if gradient is None or moment is _Moment.END:
            return 0
        reduced = getattr(gradient, _REDUCED, None)
        is_done = reduced is not None if moment is _Moment.UPDATE else reduced == gradient._version
        if is_done:
            return 0
        if gradient.requires_grad:
            raise ConfigError(
                "backward(create_graph=True) gives gradients that are part of a graph, which cannot be averaged over "
                "ranks: use torch.autograd.grad(..., create_graph=True) for the penalty, and call backward() for the "
                "loss that holds it",
                field="train_step",
            )
        return gradient_kind(gradient)

    def _gradient(self, parameter: torch.nn.Parameter, kind: int) -> torch.Tensor:
        """The parameter's gradient; zeros where this rank has none."""
        if parameter.grad is None or not self.share:  # of a stand-in even what is not finite counts nothing
            parameter.grad = zero_gradient(parameter, kind)
        return parameter.grad

    def _tell_of_gradients_by_hand(self, chosen: list[int]) -> None:
        named = ", ".join(self._names[index] for index in chosen[:4]) + (" ..." if len(chosen) > 4 else "")
        self._tell(
            "gradients_by_hand",
            f"train_step sets gradients without a backward pass ({named}): they are averaged over ranks when the "
            "optimizer steps. What was done with them before, such as clipping, saw those of one rank's samples",
        )


def _sum_over_ranks(gradients: list[torch.Tensor], share: float) -> None:
    """Put the sum over ranks of the gradients, each times the rank's share, in their place."""
    for bucket in gradient_buckets([gradient for gradient in gradients if not gradient.is_sparse]):
        flat = _flatten_dense_tensors(bucket)
        flat.mul_(share)
        dist.all_reduce(flat)
        for gradient, reduced in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
            gradient.copy_(reduced)
    for gradient in gradients:
        if gradient.is_sparse:
            gradient.mul_(share)
            dist.all_reduce(gradient)
