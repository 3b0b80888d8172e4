"""Norms of all layers' gradients as one row of the log per step, which costs hardly more than the norms themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.core.records import EventKind, LayerNorms
from workbench.engine.base.parts import GradientPart, PartNorms
from workbench.engine.watch.torch import tensor_statistics as statistics
from workbench.engine.watch.torch.host_copy import HostCopy
from workbench.rundir.log import RankLogWriter


@dataclass(frozen=True, slots=True)
class Layout:
    """What the norms of a row are of. ``chosen``: which of the parts are logged; ``place``: to which norm of the row
    each of those belongs."""

    number: int
    chosen: np.ndarray
    place: np.ndarray

    def norms(self, of_parts: np.ndarray) -> list[float]:
        """The norms of a row from those of all parts."""
        if self.chosen.size == of_parts.size == self.place[-1] + 1:  # each part is a layer's only one
            return of_parts.tolist()
        with np.errstate(over="ignore", invalid="ignore"):
            return np.sqrt(np.bincount(self.place, weights=of_parts[self.chosen] ** 2)).tolist()


@dataclass(slots=True)
class PendingNorms:
    """Norms of one scope of one step that are being copied to the host; call ``records`` once ``ready`` is true."""

    step: int
    rank: int
    scope: str
    layout: Layout
    scale: float
    factor: float | torch.Tensor
    copy: HostCopy

    def ready(self) -> bool:
        """Whether the norms have arrived on the host."""
        return self.copy.ready()

    def records(self) -> list[LayerNorms]:
        """One record, with the norm of each part of the layout."""
        norms = self.layout.norms(self.copy.arrays()[0] * (float(self.factor) / self.scale))
        return [LayerNorms(step=self.step, rank=self.rank, scope=self.scope, layout=self.layout.number, norms=norms)]


class LayerNormLog:
    """Makes the rows. What a row's norms are of is logged once, as an event, under a number that the rows have."""

    def __init__(self, log: RankLogWriter, rank: int) -> None:
        self._log = log
        self._rank = rank
        self._layouts: list[tuple[Sequence[tuple[str, str, int]], Collection[str] | None, Layout]] = []

    def begin(
        self,
        step: int,
        scope: str,
        norms: PartNorms,
        layers: frozenset[str] | None = None,
        *,
        factor: float | torch.Tensor = 1.0,
    ) -> PendingNorms | None:
        """Start the copy of ``norms``, which are logged times ``factor``, to the host; of ``layers`` only, if given.
        None where there is nothing to log."""
        known = (layout for parts, chosen, layout in self._layouts if chosen == layers and parts == norms.parts)
        layout = next(known, None) or self._new_layout(step, norms.parts, layers)
        if not layout.chosen.size:
            return None
        return PendingNorms(
            step=step,
            rank=self._rank,
            scope=scope,
            layout=layout,
            scale=norms.scale,
            factor=factor,
            copy=HostCopy([norms.norms]),
        )

    def _new_layout(self, step: int, parts: Sequence[tuple[str, str, int]], layers: Collection[str] | None) -> Layout:
        places: dict[tuple[str, str], int] = {}
        numel: list[int] = []
        chosen, place = [], []
        for index, (layer, sharded, size) in enumerate(parts):
            if not size or (layers is not None and layer not in layers):
                continue
            at = places.setdefault((layer, sharded), len(places))
            if at == len(numel):
                numel.append(0)
            numel[at] += size
            chosen.append(index)
            place.append(at)
        number = len(self._layouts) + 1
        if chosen:
            listed = [[*key, size] for key, size in zip(places, numel, strict=True)]
            self._log.event(EventKind.LAYERS, "norms", {"layout": number, "parts": listed}, step=step)
        layout = Layout(number, np.array(chosen, dtype=np.int64), np.array(place, dtype=np.int64))
        self._layouts.append((parts, layers, layout))
        return layout


class NormCollector:
    """Computes the norms of local gradients as ``Watchable.watch_batches`` shows them."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, str, int]] = []
        self._norms: list[torch.Tensor] = []
        self._scale = 1.0

    def take(self, parts: Sequence[GradientPart]) -> None:
        """Compute the norms of ``parts`` now, as the reduction may overwrite the gradients afterwards."""
        found = [part for part in parts if part.tensor.numel()]
        if found:
            self._parts += [(part.layer, part.sharded, part.tensor.numel()) for part in found]
            self._norms.append(statistics.norms([part.tensor.detach() for part in found]))
            self._scale = found[0].scale

    def finish(self) -> PartNorms | None:
        """The norms of all that was shown; None where nothing was."""
        return PartNorms(self._parts, torch.cat(self._norms), self._scale) if self._norms else None
