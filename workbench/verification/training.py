"""A recorded training, put together from what its ranks hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from workbench.core.mesh import Mesh


class RankPart(Protocol):
    """What one rank recorded, as ``rundir.recordings.RankRecording`` reads it."""

    def step(self, step: int) -> Mapping[str, np.ndarray]:
        """Values under ``gradient/``, ``weight/`` and ``copy/``."""

    def places(self) -> Mapping[str, np.ndarray]:
        """Which elements these are, under ``saved/`` and ``copy/``."""

    def about(self) -> Mapping[str, Any]:
        """Numbers and texts about the training, as JSON types."""


class Training:
    """A training of ``steps`` steps. ``losses``: of the global batch, by step. ``remarks``: name -> text of what the
    training itself said, such as that batch normalisation is not synchronised."""

    def __init__(
        self, mesh: Mesh, parts: Sequence[RankPart], losses: Sequence[float], remarks: Mapping[str, str] | None = None
    ) -> None:
        self.mesh = mesh
        self.losses = np.asarray(losses, dtype=float)
        self.remarks = dict(remarks or {})
        self.about = [dict(part.about()) for part in parts]
        shapes = self.about[0]["shapes"]
        most = self.about[0]["most"]
        self.names = list(shapes)
        self.sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        self.sampled = [name for name, size in self.sizes.items() if size > most]
        self._places = [part.places() for part in parts]
        self._step = lru_cache(maxsize=4 * len(parts))(lambda rank, step: dict(parts[rank].step(step)))
        self.lengths = {name: self._length(name) for name in self.names}

    @property
    def steps(self) -> int:
        """How many steps have a loss."""
        return len(self.losses)

    def _length(self, name: str) -> int:
        ends = [places[f"saved/{name}"] for places in self._places if f"saved/{name}" in places]
        return max((int(held[-1]) + 1 for held in ends if held.size), default=0)

    def values_by_rank(self, kind: str, name: str, step: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Rank -> the numbers of the elements that it holds, and their values (float64). ``kind``: "gradient", "weight"
        (what the optimizer updates) or "copy" (what the forward pass uses in its stead)."""
        found = {}
        for rank, places in enumerate(self._places):
            values = self._step(rank, step).get(f"{kind}/{name}")
            if values is not None:
                place = places[f"{'copy' if kind == 'copy' else 'saved'}/{name}"]
                found[rank] = (place, values.astype(np.float64))
        return found

    def whole(self, kind: str, name: str, step: int) -> np.ndarray:
        """The recorded elements of a tensor, from the first rank that holds each; a gradient that no rank has is 0."""
        values = np.zeros(self.lengths[name])
        for place, own in reversed(self.values_by_rank(kind, name, step).values()):
            values[place] = own
        return values

    def samples(self, step: int) -> list[str]:
        """What tells the samples of the global batch apart, in the order of replicas."""
        ranks = [self.mesh.rank(dp=dp) for dp in range(self.mesh.dp)]
        return [digest for rank in ranks for digest in _of_step(self.about[rank], "samples", step) or ()]

    def labels(self, step: int) -> list[int]:
        """Labels that each replica counts, where some of its labels are ignored."""
        found = [_of_step(self.about[self.mesh.rank(dp=dp)], "labels", step) for dp in range(self.mesh.dp)]
        return [count for count in found if count is not None]

    def said(self, name: str) -> Any:
        """An entry of what the first rank that has one found out of its model."""
        return next((about[name] for about in self.about if about.get(name)), None)


def _of_step(about: Mapping[str, Any], name: str, step: int) -> Any:
    table = about.get(name, {})
    return table.get(str(step), table.get(step))
