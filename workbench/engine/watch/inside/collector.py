"""Computes statistics of outputs, gradients, attention and routers during a step, as sums that can be added over calls,
micro-batches and ranks; and makes records of them once they are on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.core.records import ActivationStats, AttentionStats, RouterStats
from workbench.engine.watch.torch import tensor_statistics as statistics
from workbench.engine.watch.torch.gradient_statistics import CHUNK_ELEMENTS, SMALLEST_NORMAL, spread
from workbench.engine.watch.torch.host_copy import HostCopy
from workbench.engine.watch.torch.tensor_statistics import BIAS, MAX_ABS, NORM, SUM, ZEROS

#: exponent from which on a number is near the largest one of each precision: 1/16 of it
NEAR_OVERFLOW = {"fp32": 124, "bf16": 124, "fp16": 12}

#: layer, what, micro-batch, sharded
Key = tuple[str, str, int, str]
#: layer, micro-batch, sharded
AttentionKey = tuple[str, int, str]
#: layer, micro-batch, experts per token
RouterKey = tuple[str, int, int]


@dataclass(slots=True)
class PendingInside:
    """Statistics of one step that are being copied to the host; call ``records`` once ``ready`` is true.

    ``keys``, ``numel``: of the rows of statistics of outputs and gradients; ``scale``: divide gradients by it.
    ``attention``, ``routers``: keys and counts (queries, tokens) of the other values.
    """

    step: int
    rank: int
    precision: str
    keys: list[Key]
    numel: list[int]
    scale: float | torch.Tensor
    attention: list[tuple[AttentionKey, int]]
    routers: list[tuple[RouterKey, int]]
    copy: HostCopy

    def ready(self) -> bool:
        """Whether the values have arrived on the host."""
        return self.copy.ready()

    def records(self) -> list[ActivationStats | AttentionStats | RouterStats]:
        """One record per layer, kind of tensor and micro-batch, in the order in which they were first seen."""
        figures, counts, attention, *loads = self.copy.arrays()
        return [*self._activations(figures, counts), *self._attention(attention), *self._routers(loads)]

    def _activations(self, figures: np.ndarray, counts: np.ndarray) -> list[ActivationStats]:
        numel, zeros = np.array(self.numel, dtype=np.int64), figures[:, ZEROS].astype(np.int64)
        by_exponent = spread(counts, numel, zeros) if self.keys else np.zeros((0, BIAS))
        below, above = BIAS + SMALLEST_NORMAL[self.precision], BIAS + NEAR_OVERFLOW[self.precision]
        scale = float(self.scale)
        made: dict[Key, dict[str, Any]] = {}
        for place, key in enumerate(self.keys):
            divisor = scale if key[1] == "gradient" else 1.0
            row = made.setdefault(key, dict.fromkeys(_SUMS, 0) | {"max_abs": 0.0})
            row["numel"] += int(numel[place])
            row["sum"] += float(figures[place, SUM]) / divisor
            row["sum_sq"] += (float(figures[place, NORM]) / divisor) ** 2
            row["max_abs"] = max(row["max_abs"], float(figures[place, MAX_ABS]) / divisor)
            row["zero_count"] += int(zeros[place])
            row["nonfinite_count"] += int(counts[place, -1])
            row["underflow_count"] += int(by_exponent[place, :below].sum())
            row["overflow_count"] += int(by_exponent[place, above:].sum())
        return [
            ActivationStats(
                step=self.step, rank=self.rank, layer=layer, what=what, micro_batch=micro_batch, sharded=sharded, **row
            )
            for (layer, what, micro_batch, sharded), row in made.items()
        ]

    def _attention(self, found: np.ndarray) -> list[AttentionStats]:
        rows: dict[AttentionKey, list[Any]] = {}
        for (key, queries), (entropy, uniform, largest) in zip(self.attention, found.tolist(), strict=True):
            before = rows.get(key, [0, 0.0, 0.0, -np.inf])
            rows[key] = [before[0] + queries, before[1] + entropy, before[2] + uniform, max(before[3], largest)]
        return [
            AttentionStats(
                step=self.step,
                rank=self.rank,
                layer=layer,
                micro_batch=micro_batch,
                sharded=sharded,
                queries=queries,
                entropy_sum=entropy,
                uniform_sum=uniform,
                max_logit=largest,
            )
            for (layer, micro_batch, sharded), (queries, entropy, uniform, largest) in rows.items()
        ]

    def _routers(self, found: Sequence[np.ndarray]) -> list[RouterStats]:
        rows: dict[RouterKey, tuple[int, np.ndarray]] = {}
        for (key, tokens), values in zip(self.routers, found, strict=True):
            before = rows.get(key, (0, 0.0))
            rows[key] = before[0] + tokens, before[1] + values
        return [
            RouterStats(
                step=self.step,
                rank=self.rank,
                layer=layer,
                micro_batch=micro_batch,
                tokens=tokens,
                top_k=top_k,
                load=[round(count) for count in values[1:].tolist()],
                entropy_sum=float(values[0]),
            )
            for (layer, micro_batch, top_k), (tokens, values) in rows.items()
        ]


_SUMS = ("numel", "sum", "sum_sq", "zero_count", "nonfinite_count", "underflow_count", "overflow_count")


class InsideCollector:
    """Collects the statistics of one step on the device. ``sampled``: exponents are counted of a sample of elements."""

    def __init__(self, *, sampled: bool, precision: str) -> None:
        self._sampled = sampled
        self._precision = precision
        self._keys: list[Key] = []
        self._numel: list[int] = []
        self._figures: list[torch.Tensor] = []
        self._counts: list[torch.Tensor] = []
        self._attention: list[tuple[AttentionKey, int]] = []
        self._attended: list[torch.Tensor] = []
        self._routers: list[tuple[RouterKey, int]] = []
        self._loads: list[torch.Tensor] = []

    @torch.no_grad()
    def take(self, key: Key, tensor: torch.Tensor) -> None:
        """Add the statistics of an output or of a gradient."""
        flat = tensor.reshape(-1)
        for piece in flat.split(CHUNK_ELEMENTS) if flat.numel() else ():
            figures, counts = statistics.full_set([piece], sampled=self._sampled)
            self._keys.append(key)
            self._numel.append(piece.numel())
            self._figures.append(figures)
            self._counts.append(counts)

    def take_attention(self, key: AttentionKey, queries: int, found: torch.Tensor) -> None:
        """Add an attention's sums over its queries: entropy, entropy if uniform; and its largest logit. float64 [3]"""
        self._attention.append((key, queries))
        self._attended.append(found)

    def take_router(self, key: RouterKey, tokens: int, found: torch.Tensor) -> None:
        """Add a router's entropy, summed over tokens, and how often it chose each expert. float64 [1 + experts]"""
        self._routers.append((key, tokens))
        self._loads.append(found)

    def finish(self, step: int, rank: int, scale: float | torch.Tensor) -> PendingInside:
        """Start the copy of the statistics to the host. ``scale``: what the gradients are to be divided by."""
        none = torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, statistics.BUCKETS, dtype=torch.int64)
        tensors = [torch.cat(self._figures), torch.cat(self._counts)] if self._figures else [*none]
        tensors.append(torch.stack(self._attended) if self._attended else torch.zeros(0, 3, dtype=torch.float64))
        return PendingInside(
            step=step,
            rank=rank,
            precision=self._precision,
            keys=self._keys,
            numel=self._numel,
            scale=scale,
            attention=self._attention,
            routers=self._routers,
            copy=HostCopy([*tensors, *self._loads]),
        )
