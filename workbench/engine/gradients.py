"""Statistics of gradients, as parts of them pass by: sums that a reader can combine exactly.

Everything stays on the device until ``records``, which copies one small matrix to the host.
"""

from __future__ import annotations

import torch

from workbench.engine.strategies.base import GradientPart
from workbench.records import GradientStats

_SUM, _SUM_SQ, _MAX_ABS, _ZERO, _NONFINITE = range(5)


class GradientCollector:
    """Collects one scope of one step: give ``observe`` to ``Strategy.watch_local``, or call ``add_all``.

    Sums are taken over finite elements, in float64, so that no fp16 or bf16 gradient, scaled loss included, overflows
    or loses digits.
    """

    def __init__(self) -> None:
        self._keys: list[tuple[str, str]] = []
        self._numel: list[int] = []
        self._scales: list[float] = []
        self._figures: list[torch.Tensor] = []

    def observe(self, part: GradientPart) -> None:
        """Take the figures of one part now: what reduces it may overwrite it afterwards."""
        if not part.tensor.numel():
            return
        self._keys.append((part.layer, part.sharded))
        self._numel.append(part.tensor.numel())
        self._scales.append(part.scale)
        self._figures.append(_figures(part.tensor.detach()))

    def add_all(self, parts: list[GradientPart]) -> None:
        """Take many parts at once."""
        for part in parts:
            self.observe(part)

    def records(self, step: int, rank: int, scope: str) -> list[GradientStats]:
        """One record per layer and kind of sharding, in the order they were seen; empties the collector."""
        if not self._figures:
            return []
        rows = torch.stack(self._figures).cpu().tolist()
        layers: dict[tuple[str, str], list[float]] = {}
        for key, numel, scale, row in zip(self._keys, self._numel, self._scales, rows, strict=True):
            total = layers.setdefault(key, [0.0] * 6)
            total[_SUM] += row[_SUM] / scale
            total[_SUM_SQ] += row[_SUM_SQ] / scale**2
            total[_MAX_ABS] = max(total[_MAX_ABS], row[_MAX_ABS] / scale)
            total[_ZERO] += row[_ZERO]
            total[_NONFINITE] += row[_NONFINITE]
            total[-1] += numel
        self.__init__()  # type: ignore[misc]
        return [
            GradientStats(
                step=step,
                rank=rank,
                layer=layer,
                scope=scope,
                sharded=sharded,
                numel=int(total[-1]),
                sum=total[_SUM],
                sum_sq=total[_SUM_SQ],
                max_abs=total[_MAX_ABS],
                zero_count=int(total[_ZERO]),
                nonfinite_count=int(total[_NONFINITE]),
            )
            for (layer, sharded), total in layers.items()
        ]


def _figures(gradient: torch.Tensor) -> torch.Tensor:
    """float64 vector on the gradient's device: sum, sum of squares, largest magnitude, zeros, non-finite elements."""
    zeros = gradient.numel() - torch.count_nonzero(gradient.reshape(-1))  # flat: three times as fast
    norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
    # A finite norm says that every element is. Asking is free on a CPU; on a GPU it would wait for the device.
    if gradient.device.type == "cpu" and bool(torch.isfinite(norm)):
        nonfinite = torch.zeros_like(zeros)
    else:
        finite = torch.isfinite(gradient)
        nonfinite = gradient.numel() - finite.sum()
        gradient = torch.where(finite, gradient, 0)
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
    low, high = torch.aminmax(gradient)
    values = (gradient.sum(dtype=torch.float64), norm.square(), torch.maximum(-low, high), zeros, nonfinite)
    return torch.stack([value.to(torch.float64) for value in values])
