"""Averages gradients over data-parallel replicas: torch's DDP, or one reduction after backward where DDP is wrong.

DDP reduces while backward runs, in an order that it learned. It is wrong, or raises, where a block is checkpointed
reentrantly: each recomputation runs a backward pass of its own, so a parameter that is used twice is reduced before its
gradient is complete. The first step of a cell is therefore reduced after backward; if its graph holds reentrant
checkpoints on any rank, all later steps are too. Otherwise DDP takes over, and looks for parameters that a step did not
use, so that a branch may be taken on some ranks only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from workbench.engine.base.parts import BatchObserver
from workbench.engine.base.tensor import local_part
from workbench.engine.communication.exchange import GradientExchange
from workbench.engine.communication.weight_exchange import WeightExchange
from workbench.engine.frameworks.torch_common.autograd_graph import graph_of
from workbench.engine.frameworks.torch_common.local_gradients import PartsOf, before_ddp_reduces
from workbench.engine.frameworks.torch_common.parameters import RankParameter

#: bytes of gradients that are reduced together, as in DDP
_BUCKET_BYTES = 25 * 2**20
_NONE, _DENSE, _SPARSE = range(3)


class LookBefore:
    """Called just before gradients are reduced in place; inside ``watching`` it shows them."""

    def __init__(self) -> None:
        self._show: Callable[[], None] = _nothing

    def __call__(self) -> None:
        self._show()

    @contextmanager
    def watching(
        self, items: Sequence[RankParameter], parts_of: PartsOf, show: BatchObserver, *, keep: bool
    ) -> Iterator[None]:
        """Show the complete local gradients of ``items``. ``keep``: what was shown stays as it is."""

        def look() -> None:
            parts = parts_of(items)
            show(parts)
            for part in parts if keep else ():
                part.source.parameter.grad = part.source.parameter.grad.clone()

        self._show = look
        try:
            yield
        finally:
            self._show = _nothing


class DdpReduction:
    """Reduces the gradients of ``ddp``. ``afterwards``: begin with reductions after backward (a model not known yet).
    ``exchange``: the algorithm that averages them, in place of an all-reduce. ``weights``: one under which ranks step
    by themselves: then a step's gradients are not reduced at all. ``in_sight``: DDP reduces by functions of
    ``torch.distributed``, where a network can be emulated, and not out of Python's sight.

    The calls of a step are ``around`` each piece, ``looks_at`` the loss of each piece before its backward pass, and
    ``finish`` after the last one.
    """

    def __init__(
        self,
        ddp: DistributedDataParallel,
        *,
        afterwards: bool,
        exchange: GradientExchange | None = None,
        weights: WeightExchange | None = None,
        in_sight: bool = False,
    ) -> None:
        self._ddp = ddp
        self._parameters = [parameter for parameter in ddp.module.parameters() if parameter.requires_grad]
        self._group = ddp.process_group
        self._size = dist.get_world_size(self._group)
        self._afterwards = afterwards
        self._weights = weights
        self._was_alone = False
        self._is_reentrant = False
        self._look = LookBefore()
        self._exchange = exchange
        if exchange is not None:
            exchange.attach(ddp)
        elif in_sight:
            ddp.register_comm_hook(None, allreduce_hook)

    @property
    def afterwards(self) -> bool:
        """Whether DDP does not reduce during the backward pass of this step."""
        return self._afterwards or self.is_alone

    @property
    def is_alone(self) -> bool:
        """Whether the gradients of this step are this rank's own, and stay so."""
        return self._weights is not None and self._weights.is_alone

    def around(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Around forward and backward of one piece."""
        if self._was_alone and not self.is_alone and not self._afterwards:  # a rollback
            self._hand_over()
        self._was_alone = self.is_alone
        return nullcontext() if is_last and not self.afterwards else self._ddp.no_sync()

    def looks_at(self, loss: torch.Tensor) -> None:
        """Look for reentrant checkpoints in the graph of ``loss``, while it is not known whether there are any."""
        if self._afterwards and not self.is_alone and not self._is_reentrant and self._size > 1:
            self._is_reentrant = graph_of(loss).is_reentrant

    def finish(self) -> None:
        """Reduce, unless DDP did or the rank steps by itself; and decide how the next step is reduced. Collective."""
        if self.is_alone:
            self._look()
        elif self._afterwards:
            self._reduce_afterwards()
        if self._exchange is not None:
            self._exchange.end_step()

    def _reduce_afterwards(self) -> None:
        self._look()
        if self._size == 1:
            return  # nothing is to be reduced, whatever the graph holds
        held = [gradient_kind(parameter.grad) for parameter in self._parameters]
        agreed = torch.tensor([*held, int(self._is_reentrant)], dtype=torch.int32, device=self._ddp.device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=self._group)
        *kinds, reentrant = agreed.tolist()
        if self._exchange is None:
            average_gradients(self._parameters, kinds, self._group, self._size)
        else:
            fill_missing(self._parameters, kinds)
            self._exchange.average(self._parameters)
        self._is_reentrant = bool(reentrant)
        if not reentrant:
            self._hand_over()

    def _hand_over(self) -> None:
        """From now on DDP reduces, with a reducer that has not seen the steps before: it would take the parameters used
        in them for used in the next one."""
        self._afterwards = False
        parameters, expect_sparse = self._ddp._build_params_for_reducer()
        names = self._ddp._build_debug_param_to_name_mapping(parameters)
        self._ddp._ddp_init_helper(parameters, expect_sparse, names, False)
        for hook, state in self._ddp._comm_hooks:
            dist._register_comm_hook(self._ddp.reducer, state, hook)

    def watching(
        self, items: Sequence[RankParameter], parts_of: PartsOf, show: BatchObserver, *, keep: bool
    ) -> AbstractContextManager[None]:
        """Show the complete local gradients of ``items`` before they are reduced."""
        if self.afterwards:
            return self._look.watching(items, parts_of, show, keep=keep)
        is_last = lambda: bool(self._ddp.require_backward_grad_sync)  # noqa: E731
        return before_ddp_reduces(items, parts_of, show, keep=keep, is_last=is_last)


def _nothing() -> None:
    """Nobody watches."""


def average_gradients(parameters: Sequence[torch.Tensor], kinds: Sequence[int], group: Any, size: int) -> None:
    """Average the gradients of ``parameters`` over the ``size`` ranks of ``group``, in place. ``kinds``: the greatest
    ``gradient_kind`` of each on any of them. Collective."""
    fill_missing(parameters, kinds)
    gradients = [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
    for bucket in gradient_buckets([gradient for gradient in gradients if not gradient.is_sparse]):
        flat = _flatten_dense_tensors(bucket)
        dist.all_reduce(flat, group=group)
        flat /= size
        for gradient, reduced in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
            gradient.copy_(reduced)
    for gradient in gradients:
        if gradient.is_sparse:
            dist.all_reduce(gradient, group=group)
            gradient.div_(size)


def fill_missing(parameters: Sequence[torch.Tensor], kinds: Sequence[int]) -> None:
    """Zeros for gradients that another rank has and this one has not. ``kinds``: as for ``average_gradients``."""
    for parameter, kind in zip(parameters, kinds, strict=True):
        if kind != _NONE and parameter.grad is None:
            parameter.grad = zero_gradient(parameter, kind)


def gradient_kind(gradient: torch.Tensor | None) -> int:
    """0: there is none; 1: a dense one; 2: a sparse one."""
    return _NONE if gradient is None else _SPARSE if gradient.is_sparse else _DENSE


def zero_gradient(parameter: torch.Tensor, kind: int) -> torch.Tensor:
    """A gradient of zeros of that kind."""
    if kind == _DENSE:
        return torch.zeros_like(parameter)
    return torch.zeros_like(parameter, layout=torch.sparse_coo)


def gradient_buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Gradients of one type each, in order, of about ``_BUCKET_BYTES``."""
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        bucket: list[torch.Tensor] = []
        size = 0
        for gradient in gradients:
            if gradient.dtype != dtype:
                continue
            bucket.append(gradient)
            size += gradient.numel() * gradient.element_size()
            if size >= _BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket
