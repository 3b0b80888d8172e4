"""Plain data parallelism over any library that can sum and broadcast: what such a library brings is two functions.

Rank 0's weights are broadcast at the start, its buffers at the start of each step, as under torch's DDP. Gradients are
averaged after backward, in buckets, in the order of parameters.
"""

from __future__ import annotations

import gc
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from workbench.core.config import TrainSpec
from workbench.engine.base.batch import Batch
from workbench.engine.base.names import users_name
from workbench.engine.base.parts import BatchObserver
from workbench.engine.base.workload import Workload
from workbench.engine.frameworks.torch.whole_model import ReplicatedStrategy
from workbench.engine.frameworks.torch_common.ddp_reduction import LookBefore, gradient_buckets
from workbench.engine.frameworks.torch_common.local_gradients import PartsOf
from workbench.engine.frameworks.torch_common.losses.terms import LossTerm
from workbench.engine.frameworks.torch_common.parameters import RankParameter
from workbench.engine.frameworks.torch_common.state_locator import StateLocator
from workbench.engine.state.layout import RankState
from workbench.errors import ConfigError


class DataParallelStrategy(ReplicatedStrategy):
    """Loss, gradients and updates are those of one process with the global batch.

    A subclass has ``all_reduce`` and ``broadcast``. It may override ``begin``, which is called before their first use.
    """

    @abstractmethod
    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum ``tensor``, which is dense, over the ranks, in place and bit by bit alike on all of them. Collective."""

    @abstractmethod
    def broadcast(self, tensor: torch.Tensor) -> None:
        """Give all ranks what rank 0 has in ``tensor``, which is dense. Collective."""

    def begin(self) -> None:
        """Make what the two functions need, such as a communicator. Collective."""

    @classmethod
    def check(cls, spec: TrainSpec, workload: Workload) -> None:
        super().check(spec, workload)
        check_dense(workload.model, spec.plan.framework)

    def _distribute(self) -> None:
        self._share_out()
        self._mine = self._told
        self._shares = {(item.layer, item.sharded) for item in self._mine}
        self.begin()
        self._broadcast([*self._module.parameters(), *self._module.buffers()])
        self._reduction = _AfterBackward(
            self._module, self.mesh.dp, self.all_reduce, lambda: self.mark("communication", -1)
        )
        self.model = self._run

    def _run(self, compute: Callable[[], LossTerm]) -> LossTerm:
        found: LossTerm = self._module(compute)
        return found

    def forward_backward(self, pieces: Sequence[Batch]) -> torch.Tensor:
        self._broadcast(list(self._module.buffers()))
        return super().forward_backward(pieces)

    def _broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        for flat, parts in _flattened(tensors if self.mesh.dp > 1 else ()):
            self.broadcast(flat)
            _give_back(flat, parts)

    def _global_norm(self) -> float:
        total = self.grad_sq().clone()
        if self.mesh.dp > 1:
            self.all_reduce(total)
        return math.sqrt(total.item())

    def rank_state(self) -> RankState:
        """As ``Checkpointable.rank_state``."""
        state = StateLocator(module=self._module, originals=self.originals, mesh=self.mesh, here=self.coordinates)
        scaler = self._scaler if self._scaler.is_enabled() else None
        return state.rank_state(self._optimizer, scaler=scaler, generators=self.generators())

    def close(self) -> None:
        if hasattr(self, "model"):
            self.norms.close()
            self._hooks.give_back()
            del self.model, self._reduction
            gc.collect()


class _AfterBackward:
    """Averages the gradients of ``module`` over ``ranks`` ranks by ``all_reduce``. ``begins``: called before they wait
    for each other."""

    #: gradients are reduced after backward
    afterwards = True

    def __init__(
        self,
        module: torch.nn.Module,
        ranks: int,
        all_reduce: Callable[[torch.Tensor], None],
        begins: Callable[[], object],
    ) -> None:
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._ranks, self._all_reduce, self._begins = ranks, all_reduce, begins
        self._look = LookBefore()

    def around(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Around forward and backward of one piece: nothing is reduced there."""
        return nullcontext()

    def looks_at(self, loss: torch.Tensor) -> None:
        """Whatever the graph of a loss holds, its gradients are complete after backward."""

    def finish(self) -> None:
        """Average. A gradient that this rank does not have counts as zero where another rank has it. Collective."""
        self._look()
        if self._ranks == 1:
            return
        self._begins()
        device = self._parameters[0].device
        have = torch.tensor([each.grad is not None for each in self._parameters], dtype=torch.int32, device=device)
        self._all_reduce(have)
        for parameter, ranks in zip(self._parameters, have.tolist(), strict=True):
            if ranks and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for flat, parts in _flattened([each.grad for each in self._parameters if each.grad is not None]):
            self._all_reduce(flat)
            flat.div_(self._ranks)
            _give_back(flat, parts)

    def watching(
        self, items: Sequence[RankParameter], parts_of: PartsOf, show: BatchObserver, *, keep: bool
    ) -> AbstractContextManager[None]:
        """Show the complete local gradients of ``items`` before they are reduced."""
        return self._look.watching(items, parts_of, show, keep=keep)


def _flattened(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
    """One flat copy after another of some ``tensors`` of one type, and these."""
    for bucket in gradient_buckets([tensor.detach() for tensor in tensors if tensor.numel()]):
        yield _flatten_dense_tensors(bucket), bucket


def _give_back(flat: torch.Tensor, parts: list[torch.Tensor]) -> None:
    for part, value in zip(parts, _unflatten_dense_tensors(flat, parts), strict=True):
        part.copy_(value)


def check_dense(model: torch.nn.Module, framework: str) -> None:
    """Refuse, with ``ConfigError``, models whose gradients are no dense real numbers."""
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) is True:
            raise ConfigError(
                f"{users_name(name)} has sparse gradients, which --framework {framework} does not average: make it "
                "with sparse=False, or use --framework torch",
                field="model",
            )
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise ConfigError(
                f"{users_name(name)} has complex numbers, which --framework {framework} does not average: use "
                "--framework torch",
                field="model",
            )
