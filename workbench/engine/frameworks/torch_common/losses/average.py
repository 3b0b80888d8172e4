"""Weights the losses of pieces and replicas, so that together they are the loss of the whole batch in one process.

A piece that averages over n of the N labels (or samples) of the global batch counts n / N. N is known only when every
piece was computed, so a loss is divided by an estimate of N first: what the first pieces of all replicas hold, times
the number of pieces. Without gradient accumulation this is N itself; else ``finish`` returns the factor that corrects
the gradients. A pipeline runs backward before all micro-batches went forward: its estimate is what it expects in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from workbench.core.mesh import Mesh
from workbench.engine.base.batch import Batch, contents
from workbench.engine.frameworks.torch_common.exchange import all_reduce_uncounted
from workbench.engine.frameworks.torch_common.losses.calls import Number
from workbench.engine.frameworks.torch_common.losses.terms import LossTerm

#: steps in which a loss is looked at for what a person should know of its average
_TOLD_STEPS = 3


class LossAverage:
    """The weights of one step after another. Every rank makes the same calls in the same order.

    ``expected``: what the loss of a batch is likely to be an average over; only a pipeline asks.
    """

    def __init__(
        self, mesh: Mesh, device: torch.device, expected: Callable[[Batch], Number] = lambda batch: 1.0
    ) -> None:
        self._mesh = mesh
        self._device = device
        self._expected = expected
        self._replicas = mesh.dp
        self._parts = 1
        self._estimate: Number | None = None
        self._used: Number | None = None
        self._factor: Number | None = None
        self._is_empty: bool | torch.Tensor = False
        self._counts: list[Number] = []
        self._steps = 0

    @property
    def is_new(self) -> bool:
        """Whether this is one of the first steps."""
        return self._steps <= _TOLD_STEPS

    def begin(self, pieces: Sequence[Batch], micro_batches: int = 1) -> None:
        """Begin a step over ``pieces``, each of which a pipeline cuts into ``micro_batches``.

        Collective in a pipeline.
        """
        self._steps += 1
        self._parts = len(pieces) * micro_batches
        self._counts = []
        self._estimate = None
        if self._mesh.pp > 1:
            total = self._summed(sum(self._expected(contents(piece)) for piece in pieces))
            self._estimate = _nonzero(total / self._mesh.world_size / self._parts, 1.0)

    def weighted(self, term: LossTerm, samples: float, waits: Callable[[], object] = lambda: None) -> torch.Tensor:
        """What ``term``, of ``samples`` samples (0: a stand-in), adds to the loss of this replica: an fp32 scalar.

        The mean over replicas of the sum over pieces is the loss of the global batch. ``waits`` is called before ranks
        wait for each other, at the first piece of a step.
        """
        count = _count(term, samples)
        if self._estimate is None:
            waits()
            agreed = self._summed(count) / self._mesh.world_size
            self._is_empty = agreed == 0 if self._parts == 1 else False
            self._estimate = _nonzero(agreed, 1.0)  # alike on all ranks, also where their shares differ in size
        self._used = self._estimate
        self._counts.append(self._estimate if term.form == "sum" else count)  # a sum is right whatever the counts are
        return self._divided(term, samples, count)

    def again(self, term: LossTerm, samples: float) -> torch.Tensor:
        """``weighted`` for a term of the last step that is computed once more, with the final weight. No rank waits."""
        count = _count(term, samples)
        loss = self._divided(term, samples, count)
        return loss if self._factor is None else loss * self._factor

    def state(self) -> dict[str, float | None]:
        """What ``again`` needs in another process, as plain numbers."""
        factor = None if self._factor is None else float(self._factor)
        used = None if self._used is None else float(self._used)
        return {"estimate": used, "factor": factor, "replicas": self._replicas, "parts": self._parts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo ``state``. Without an estimate, as earlier versions kept none, all pieces weigh the same."""
        self._used, self._factor = state["estimate"], state["factor"]
        self._replicas, self._parts = state["replicas"], state["parts"]

    def _divided(self, term: LossTerm, samples: float, count: Number) -> torch.Tensor:
        value, used = term.value.float(), count if self._used is None else self._used
        if term.form == "sum":
            return value * (self._replicas if samples else 0.0)
        if term.form == "total":
            return (value if samples else value * 0.0) / _fp32(used * self._parts)
        return self._without_nan(value, count) * _fp32(count / used / self._parts)

    def _without_nan(self, value: torch.Tensor, count: Number) -> torch.Tensor:
        """A mean over no label is NaN: 0 instead, with gradient 0, unless the whole batch has no label."""
        if isinstance(count, float | int) and (count or self._is_empty is True):
            return value
        keep = torch.as_tensor(count, device=value.device) > 0
        keep |= torch.as_tensor(self._is_empty, device=value.device)
        return torch.where(keep, value, torch.zeros_like(value))

    def finish(self) -> Number | None:
        """The factor by which this step's gradients and losses are to be multiplied; None: they are right.

        Collective where a step has several pieces or stages.
        """
        self._factor = None
        if self._parts == 1 or self._estimate is None:
            return None
        counted: Number = sum(self._counts) if self._counts else 0.0
        mean = self._summed(counted) / (self._mesh.dp * self._mesh.tp * self._parts)
        factor = self._estimate / mean if not isinstance(mean, float) or mean else math.nan
        is_right = isinstance(factor, float) and math.isclose(factor, 1.0, rel_tol=1e-12)
        self._factor = None if is_right else _fp32(factor)
        return self._factor

    @property
    def factor(self) -> Number:
        """What ``finish`` returned in the last step; 1 for None."""
        return 1.0 if self._factor is None else self._factor

    def _summed(self, count: Number) -> Number:
        """The sum over all ranks; a scalar on the device unless that is the host. Collective."""
        if self._mesh.world_size == 1:
            return count
        total = torch.as_tensor(count, dtype=torch.float64, device=self._device).reshape(1).clone()
        all_reduce_uncounted(total)
        return float(total) if total.device.type == "cpu" else total.reshape(())


def _count(term: LossTerm, samples: float) -> Number:
    """What a term counts: labels where it knows them, else samples; a stand-in counts nothing."""
    return samples if term.form == "sum" or term.count is None or not samples else term.count


def _nonzero(number: Number, otherwise: float) -> Number:
    if isinstance(number, torch.Tensor):
        return torch.where(number > 0, number, otherwise)
    return number or otherwise


def _fp32(number: Number) -> Number:
    return number.float() if isinstance(number, torch.Tensor) else number
