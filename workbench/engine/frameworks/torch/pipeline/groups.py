"""Groups of ranks along the axes of the mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from workbench.core.mesh import Coordinates, Mesh


class AxisGroups:
    """This rank's groups. Every rank asks for the same groups in the same order; making one is collective.

    ``pipeline``: its replica's stages. ``replicas``: the ranks with the same stages. ``tensor``: those that split the
    layers of its stages; None without ``tp``. ``of_stages``: some stages only.
    """

    def __init__(self, mesh: Mesh, here: Coordinates) -> None:
        self._mesh = mesh
        self._here = here
        self._of_stages: dict[tuple[int, ...], Any] = {}
        self.pipeline = self.of_stages(range(mesh.pp))
        self.replicas = self._mine(
            [
                [mesh.rank(dp=dp, pp=pp, tp=tp) for dp in range(mesh.dp)]
                for pp in range(mesh.pp)
                for tp in range(mesh.tp)
            ]
        )

        self.tensor = (
            self._mine(
                [
                    [mesh.rank(dp=dp, pp=pp, tp=tp) for tp in range(mesh.tp)]
                    for dp in range(mesh.dp)
                    for pp in range(mesh.pp)
                ]
            )
            if mesh.tp > 1
            else None
        )

    def of_stages(self, ranks: Sequence[int]) -> Any:
        """The group of the ranks with these numbers in this rank's pipeline; None where it is not among them."""
        key = tuple(ranks)
        if key not in self._of_stages:
            mesh = self._mesh
            self._of_stages[key] = self._mine(
                [[mesh.rank(dp=dp, pp=pp, tp=tp) for pp in key] for dp in range(mesh.dp) for tp in range(mesh.tp)]
            )
        return self._of_stages[key]

    def _mine(self, groups: Sequence[Sequence[int]]) -> Any:
        own = self._mesh.rank(dp=self._here.dp, pp=self._here.pp, tp=self._here.tp)
        found = None
        for ranks in groups:
            made = dist.new_group(list(ranks))
            if own in ranks:
                found = made
        return found
