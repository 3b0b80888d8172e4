"""Batch normalisation over data-parallel replicas: by the statistics of each rank's own share of the batch, as in
torch's DDP, or of the whole batch (``--sync-batchnorm``).

torch's ``SyncBatchNorm`` runs on GPUs only and counts the samples of stand-ins; the one here runs on any device. It
replaces the ``forward`` of the modules, so that a cell's references to them and their hooks stay.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from workbench.engine.base.batch import Batch, StandIn
from workbench.engine.base.names import users_name
from workbench.engine.base.user_log import silenced
from workbench.errors import RunDirectoryError

_SHOWN = 3


class BatchNorms:
    """The batch normalisation layers of a model that is whole on each of ``replicas`` ranks, from now to ``close``.

    ``synchronised``: layers in training mode use the statistics of all replicas; a ``torch.nn.SyncBatchNorm`` always
    does. Samples of a ``StandIn`` count in no statistics, which is why each piece is computed inside ``around``.
    Forward and backward passes of synchronised layers are collective. ``accumulate``: gradient accumulation steps.
    """

    def __init__(self, module: torch.nn.Module, *, replicas: int, synchronised: bool, accumulate: int) -> None:
        found = [(users_name(name), each) for name, each in module.named_modules() if isinstance(each, _BatchNorm)]
        self._is_counted = True
        self._shared = SharedStatistics()
        self._before: list[tuple[_BatchNorm, type[_BatchNorm], Any]] = [
            (norm, type(norm), vars(norm).get("forward")) for _, norm in found
        ]
        self._own_share: list[str] = []
        self._own_step = [name for name, norm in found if norm.training and accumulate > 1]
        self._synchronised: set[torch.nn.Module] = set()
        for name, norm in found:
            if synchronised or isinstance(norm, torch.nn.SyncBatchNorm):
                self._synchronised.add(norm)
            elif replicas > 1 and norm.training:
                self._own_share.append(name)
            if isinstance(norm, torch.nn.SyncBatchNorm):
                norm.__class__ = _Converted  # type: ignore[assignment]  # DDP refuses it on CPUs
        if replicas > 1:
            self._replace_forward()

    def _replace_forward(self) -> None:
        for norm, _, _ in self._before:
            compute = self._of_all if norm in self._synchronised else self._of_own_share
            norm.forward = _uncompiled(partial(compute, norm, norm.forward))  # type: ignore[method-assign]

    def tell_on(self, rank: int, tell: Callable[[str, str], object]) -> None:
        """On rank 0, tell of layers that normalise by a part of the batch."""
        told = []
        if self._own_share:
            told.append(
                f"batch normalisation ({_listed(self._own_share)}) uses the statistics of each rank's own share of the "
                "batch, as torch's DDP does: the loss depends on the number of ranks, and checkpoints hold the "
                "statistics of rank 0, or of all where ranks step by themselves. --sync-batchnorm uses those of the "
                "whole batch"
            )
        if self._own_step:
            told.append(
                f"batch normalisation ({_listed(self._own_step)}) uses the statistics of one gradient accumulation "
                "step at a time, and its running statistics move at each of them, as in any loop that accumulates "
                "gradients: the loss depends on --accumulate. Layers that do not look across samples, such as "
                "GroupNorm, do not depend on it"
            )
        if told and not rank:
            tell("batch_norm", ". ".join(told))

    def recording(self) -> AbstractContextManager[None]:
        """Around a pass: what replicas tell each other in it is ``recorded``."""
        return self._shared.recording()

    def recorded(self) -> Mapping[str, torch.Tensor]:
        """As ``SharedNorms.recorded``."""
        return self._shared.recorded

    def give(self, recorded: Mapping[str, torch.Tensor]) -> None:
        """As ``SharedNorms.give``."""
        self._shared.given = recorded
        self._replace_forward()

    @contextmanager
    def around(self, piece: Batch) -> Iterator[None]:
        """Around the forward pass of one piece of a batch. What a ``StandIn`` logs counts nowhere either."""
        self._is_counted = not isinstance(piece, StandIn)
        try:
            with nullcontext() if self._is_counted else silenced():
                yield
        finally:
            self._is_counted = True

    def close(self) -> None:
        """Give the layers their own ``forward`` back."""
        for norm, kind, forward in self._before:
            norm.__class__ = kind
            vars(norm).pop("forward", None)
            if forward is not None:  # the cell's own, of this module alone
                norm.forward = forward  # type: ignore[method-assign]
        self._before = []

    def _of_own_share(self, norm: _BatchNorm, forward: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return forward(x) if self._is_counted or not norm.training else _scaled(norm, x)

    def _of_all(self, norm: _BatchNorm, forward: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        if not norm.training:
            return forward(x)
        norm._check_input_dim(x)
        y, mean, variance, count = _Synchronised.apply(
            x, norm.weight, norm.bias, norm.eps, self._is_counted, self._shared
        )
        if norm.track_running_stats and norm.running_mean is not None:
            _update(norm, mean, variance * (count / (count - 1)))
        return y


class SharedStatistics:
    """What synchronised layers learn of the samples of all replicas, call by call.

    ``recorded``: of the last pass inside ``recording``, by the number of the call and the direction. ``given``: what
    another process has recorded, which this one, with the samples of one replica only, uses; None: replicas are asked.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._is_recording = False
        self.recorded: dict[str, torch.Tensor] = {}
        self.given: Mapping[str, torch.Tensor] | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around a pass, whose calls are counted from 0."""
        self._calls, self.recorded, self._is_recording = 0, {}, True
        try:
            yield
        finally:
            self._is_recording = False

    def next_call(self) -> int:
        """The number of a call."""
        self._calls += 1
        return self._calls - 1

    def gathered(self, call: int, own: torch.Tensor) -> torch.Tensor:
        """The statistics of all replicas, [replicas, values], from those of each."""
        return self._shared(f"{call}.forward", own, _gather)

    def summed(self, call: int, own: torch.Tensor) -> torch.Tensor:
        """The sum over all replicas."""
        return self._shared(f"{call}.backward", own, _sum)

    def _shared(self, name: str, own: torch.Tensor, exchange: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        if self.given is None:
            found = exchange(own)
        elif name in self.given:
            found = self.given[name].to(own.device)
        else:
            raise RunDirectoryError(
                "the replay runs other batch normalisation layers than the step did: was the code changed since?"
            )
        if self._is_recording:
            self.recorded[name] = found
        return found


def _gather(own: torch.Tensor) -> torch.Tensor:
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    return torch.stack(everyone)


def _sum(own: torch.Tensor) -> torch.Tensor:
    total = own.clone()
    dist.all_reduce(total)
    return total


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


class _Converted(_BatchNorm):
    """A ``torch.nn.SyncBatchNorm`` while it is trained."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")


def _uncompiled(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``forward``, left out of the graphs of ``torch.compile`` where that was used."""
    return torch.compiler.disable(forward) if "torch._dynamo" in sys.modules else forward


def _scaled(norm: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
    """``x`` with the layer's weights, not normalised: for samples that count nothing, not even in a loss."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    for weight, combine in ((norm.weight, torch.mul), (norm.bias, torch.add)):
        x = x if weight is None else combine(x, weight.view(shape).to(x.dtype))
    return x


@torch.no_grad()
def _update(norm: _BatchNorm, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Move the running statistics towards those of this batch, as ``torch.nn.BatchNorm1d`` does."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1.0 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)


class _Synchronised(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with mean and biased variance of all ranks' samples per
    channel (Ioffe and Szegedy 2015, algorithm 1; the ranks' parts are combined as in Chan et al. 1979).

    ``x``: [samples, channels, ...]. Also returns mean and variance [channels] and the number of values per channel.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - a Function is called with positional arguments
        ctx: Any, x: torch.Tensor, weight: Any, bias: Any, eps: float, is_counted: bool, shared: SharedStatistics
    ) -> Any:
        dims, shape = [0, *range(2, x.dim())], (1, -1) + (1,) * (x.dim() - 2)
        real = x.to(torch.promote_types(x.dtype, torch.float32))
        own_mean = real.mean(dims)
        own_squares = (real - own_mean.view(shape)).square().sum(dims)
        number = own_mean.new_full((1,), real.numel() / real.shape[1])
        own = torch.cat([own_mean, own_squares, number])
        if not is_counted:
            own.zero_()
        ctx.shared, ctx.call = shared, shared.next_call()
        means, squares, numbers = shared.gathered(ctx.call, own).split([real.shape[1], real.shape[1], 1], dim=1)
        count = numbers.sum()
        if x.device.type == "cpu" and count < 2:  # elsewhere the host would wait for the device
            raise ValueError(
                f"Expected more than 1 value per channel when training, got {int(count)} over all ranks: use a larger "
                "--batch-size"
            )
        mean = (means * numbers).sum(0) / count
        variance = (squares + numbers * (means - mean).square()).sum(0) / count
        inverse = (variance + eps).rsqrt()
        normalised = (real - mean.view(shape)) * inverse.view(shape)
        ctx.save_for_backward(normalised, weight, inverse, count)
        ctx.dims, ctx.shape, ctx.is_counted = dims, shape, is_counted
        y = normalised if weight is None else normalised * weight.view(shape)
        y = y if bias is None else y + bias.view(shape)
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, given: torch.Tensor, *_: Any) -> Any:
        normalised, weight, inverse, count = ctx.saved_tensors
        real = given.to(normalised.dtype)
        sums = torch.stack([real.sum(ctx.dims), (real * normalised).sum(ctx.dims)])
        of_bias, of_weight = sums
        sums = ctx.shared.summed(ctx.call, sums)
        if ctx.is_counted:
            mean, along = (sums / count).view(2, *ctx.shape)
            real = real - mean - normalised * along
        scale = inverse if weight is None else inverse * weight
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return (
            (real * scale.view(ctx.shape)).to(given.dtype) if needs_x else None,
            of_weight.to(weight.dtype) if needs_weight else None,
            of_bias if needs_bias else None,
            None,
            None,
            None,
        )
