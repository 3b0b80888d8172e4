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


@dataclass(slots=True)
class PendingNorms:
    """Norms of one scope of one step that are being copied to the host; call ``records`` once ``ready`` is true."""

    step: int
    rank: int
    scope: str
    layout: int
    chosen: np.ndarray
    place: np.ndarray
    scale: float
    copy: HostCopy

    def ready(self) -> bool:
        """Whether the norms have arrived on the host."""
        return self.copy.ready()

    def records(self) -> list[LayerNorms]:
        """One record, with the norm of each part of the layout."""
        (found,) = self.copy.arrays()
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.bincount(self.place, weights=(found[self.chosen] / self.scale) ** 2)
        norms = np.sqrt(squares).tolist()
        return [LayerNorms(step=self.step, rank=self.rank, scope=self.scope, layout=self.layout, norms=norms)]


@dataclass(frozen=True, slots=True)
class _Layout:
    """``chosen``: which of the parts are logged; ``place``: to which norm of the row each of those belongs."""

    number: int
    chosen: np.ndarray
    place: np.ndarray


class LayerNormLog:
    """Makes the rows. What a row's norms are of is logged once, as an event, under a number that the rows have."""

    def __init__(self, log: RankLogWriter, rank: int) -> None:
        self._log = log
        self._rank = rank
        self._layouts: dict[tuple[Sequence[tuple[str, str, int]], Collection[str] | None], _Layout] = {}

    def begin(
        self, step: int, scope: str, norms: PartNorms, layers: frozenset[str] | None = None
    ) -> PendingNorms | None:
        """Start the copy of ``norms`` to the host; of ``layers`` only, if given. None where there is nothing to log."""
        key = tuple(norms.parts), layers
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = self._new_layout(step, *key)
        if not layout.chosen.size:
            return None
        return PendingNorms(
            step=step,
            rank=self._rank,
            scope=scope,
            layout=layout.number,
            chosen=layout.chosen,
            place=layout.place,
            scale=norms.scale,
            copy=HostCopy([norms.norms]),
        )

    def _new_layout(self, step: int, parts: Sequence[tuple[str, str, int]], layers: Collection[str] | None) -> _Layout:
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
        return _Layout(number, np.array(chosen, dtype=np.int64), np.array(place, dtype=np.int64))


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
