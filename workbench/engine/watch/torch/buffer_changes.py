"""Names, once per run, buffers and tensors of the cell that the forward pass changes by the samples of its rank or
accumulation step."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from workbench.core.config import TrainSpec
from workbench.engine.agree.exchange import Exchange
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.workload import KeptState

_FIRST_STEPS = 3
_NAMED = 8


class BufferChanges(StepObserver):
    """Compares the buffers of ``model``, and tensors of the cell's ``state``, before and after the forward passes of
    the first steps, and over the ranks.

    Those of batch normalisation are told of elsewhere. Collective over ``exchange`` in these steps, where a batch is
    cut into pieces and the model is whole on every rank.
    """

    def __init__(
        self,
        spec: TrainSpec,
        strategy: Strategy,
        model: torch.nn.Module,
        exchange: Exchange,
        state: KeptState | None = None,
    ) -> None:
        is_whole = strategy.mesh.replica_size == 1
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        known = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
        self._names = [name for name, buffer in model.named_buffers() if id(buffer) not in known]
        self._model, self._strategy, self._exchange = model, strategy, exchange
        self._accumulate = spec.accumulate
        self._state = state
        has_some = self._names or (state is not None and state.names)
        self._left = _FIRST_STEPS if spec.pieces > 1 and is_whole and has_some else 0
        self._before: dict[str, list[float]] = {}
        self._marks: dict[str, tuple[int, int]] = {}

    def begins(self, step: int, watch: int) -> None:
        if self._left:
            self._before = self._sums()
            self._marks = {name: _mark(tensor) for name, tensor in self._tensors().items()}

    def reduced(self, step: int) -> None:
        if not self._left:
            return
        self._left -= 1
        after = self._sums()
        changed = [name for name in self._names if after.get(name) != self._before.get(name)]
        found = {name: after[name] for name in changed if name in after}
        tensors = self._tensors().items()
        found |= {name: _sums_of(tensor) for name, tensor in tensors if self._marks.get(name) != _mark(tensor)}
        every = self._exchange.gathered(found)
        apart = [name for name in every[0] if any(own.get(name) != every[0][name] for own in every)]
        pieces = [name for name in every[0] if self._accumulate > 1]
        names = list(dict.fromkeys([*apart, *pieces]))
        if names and self._strategy.rank == 0:
            where = "by the samples of each rank" if apart else "at each gradient accumulation step"
            self._strategy.tell(
                "buffers_by_share",
                f"the forward pass or the loss changes {', '.join(names[:_NAMED])} {where}: they, and what is computed "
                "from them, are not those of one process with the whole batch. Of buffers checkpoints hold those of "
                "rank 0, of other tensors those of each rank",
            )

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {} if self._state is None else self._state.capture()[1]

    def _sums(self) -> dict[str, list[float]]:
        buffers = dict(self._model.named_buffers())
        return {name: _sums_of(buffers[name]) for name in self._names if name in buffers}


def _mark(tensor: torch.Tensor) -> tuple[int, int]:
    """What is another where a tensor was changed in place or replaced."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _sums_of(buffer: torch.Tensor) -> list[float]:
    """Two sums over all elements, one of which depends on their order."""
    values = torch.view_as_real(buffer) if buffer.is_complex() else buffer
    flat = values.detach().double().flatten()
    weights = torch.linspace(1, 2, len(flat), dtype=flat.dtype, device=flat.device)
    return torch.stack([flat.sum(), flat @ weights]).nan_to_num().tolist()  # one that is not a number equals itself
