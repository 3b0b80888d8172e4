"""Computes sums of squares per layer of weights, their updates, and the optimizer's moments, over one optimizer
step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.core.records import WeightStats
from workbench.engine.base.parts import WeightPart
from workbench.engine.watch.torch import tensor_statistics as statistics
from workbench.engine.watch.torch.host_copy import HostCopy


@dataclass(slots=True)
class PendingWeights:
    """Norms that are being copied to the host; call ``records`` once ``ready`` is true."""

    step: int
    rank: int
    keys: list[tuple[str, str]]
    numel: list[int]
    has_moment: list[tuple[bool, bool]]
    copy: HostCopy

    def ready(self) -> bool:
        """Whether the values have arrived on the host."""
        return self.copy.ready()

    def records(self) -> list[WeightStats]:
        """One record per layer and kind of sharding."""
        (found,) = self.copy.arrays()
        squares = found.reshape(4, -1) ** 2
        totals: dict[tuple[str, str], np.ndarray] = {}
        for place, key in enumerate(self.keys):
            row = np.array([self.numel[place], *squares[:, place]])
            for moment in (0, 1):
                if not self.has_moment[place][moment]:
                    row[3 + moment] = math.nan
            totals[key] = totals.get(key, 0) + row
        return [
            WeightStats(
                step=self.step,
                rank=self.rank,
                layer=layer,
                sharded=sharded,
                numel=int(row[0]),
                weight_sq=float(row[1]),
                update_sq=float(row[2]),
                moment1_sq=float(row[3]),
                moment2_sq=float(row[4]),
            )
            for (layer, sharded), row in totals.items()
        ]


class WeightCollector:
    """Call ``before`` and ``after`` around an optimizer step. In between a copy of the old weights stays in memory; on
    a CPU its memory is kept for the next time, as fresh memory costs more than the copy."""

    def __init__(self) -> None:
        self._old: list[torch.Tensor] = []
        self._memory: list[torch.Tensor] = []

    @torch.no_grad()
    def before(self, parts: Sequence[WeightPart]) -> None:
        """Copy these weights."""
        weights = [part.weight for part in parts if part.weight.numel()]
        if not weights:
            self._old = []
            return
        if [_kind(tensor) for tensor in self._memory] != [_kind(tensor) for tensor in weights]:
            self._memory = []  # before more is taken
            self._memory = [torch.empty_like(tensor) for tensor in weights]
        torch._foreach_copy_(self._memory, weights)
        self._old = self._memory
        if weights[0].device.type != "cpu":
            self._memory = []

    @torch.no_grad()
    def after(self, parts: Sequence[WeightPart], step: int, rank: int) -> PendingWeights | None:
        """Compute the sums for the same parts after the step; None when ``before`` saw none or other parts."""
        parts = [part for part in parts if part.weight.numel()]
        old, self._old = self._old, []
        if not parts or len(old) != len(parts):
            return None
        new = [part.weight for part in parts]
        weights = statistics.norms(new)
        torch._foreach_sub_(old, new)
        moments = [_norms_of([part.moments[which] for part in parts], weights) for which in (0, 1)]
        return PendingWeights(
            step=step,
            rank=rank,
            keys=[(part.layer, part.sharded) for part in parts],
            numel=[part.weight.numel() for part in parts],
            has_moment=[(part.moments[0] is not None, part.moments[1] is not None) for part in parts],
            copy=HostCopy([torch.cat([weights, statistics.norms(old), *moments])]),
        )


def _kind(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _norms_of(tensors: Sequence[torch.Tensor | None], like: torch.Tensor) -> torch.Tensor:
    """L2 norms of ``tensors``, zero where one is None; dtype, device and shape as ``like``."""
    norms = torch.zeros_like(like)
    present = [(index, tensor) for index, tensor in enumerate(tensors) if tensor is not None]
    if present:
        norms[[index for index, _ in present]] = statistics.norms([tensor for _, tensor in present])
    return norms
