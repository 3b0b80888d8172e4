"""Rank <-> coordinates on the mesh (dp, pp, cp, tp): arithmetic only.

The order of axes is Colossal-AI's ``ProcessGroupMesh(dp, pp, tp)``, row-major, with cp between pp and tp: tp peers are
neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

AXES = ("dp", "pp", "cp", "tp")


@dataclass(frozen=True)
class Coordinates:
    """Where a rank sits: its index along each axis."""

    dp: int
    pp: int
    tp: int
    cp: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the first of those ranks of a stage that all compute the same loss."""
        return self.cp == self.tp == 0


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Sizes of the axes; ``dp * pp * cp * tp`` ranks."""

    dp: int = 1
    pp: int = 1
    tp: int = 1
    cp: int = 1

    def __post_init__(self) -> None:
        for axis in AXES:
            if getattr(self, axis) < 1:
                raise ValueError(f"mesh axis {axis} = {getattr(self, axis)} must be at least 1")

    @property
    def world_size(self) -> int:
        """How many ranks."""
        return self.dp * self.replica_size

    @property
    def replica_size(self) -> int:
        """How many ranks hold one data-parallel replica: they follow one another."""
        return self.pp * self.peers

    @property
    def peers(self) -> int:
        """How many ranks compute one stage of one replica."""
        return self.cp * self.tp

    def peer(self, here: Coordinates) -> int:
        """The number of a rank among those that compute the same stage of the same replica."""
        return here.cp * self.tp + here.tp

    def coordinates(self, rank: int) -> Coordinates:
        """Coordinates of a rank; ``ValueError`` outside ``0 .. world_size - 1``."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside a mesh of {self.world_size} ranks")
        rest, tp = divmod(rank, self.tp)
        rest, cp = divmod(rest, self.cp)
        dp, pp = divmod(rest, self.pp)
        return Coordinates(dp=dp, pp=pp, tp=tp, cp=cp)

    def rank(self, *, dp: int = 0, pp: int = 0, tp: int = 0, cp: int = 0) -> int:
        """Rank at the given coordinates."""
        for axis, index in (("dp", dp), ("pp", pp), ("cp", cp), ("tp", tp)):
            if not 0 <= index < getattr(self, axis):
                raise ValueError(f"{axis} = {index} is outside 0..{getattr(self, axis) - 1}")
        return ((dp * self.pp + pp) * self.cp + cp) * self.tp + tp

    def describe(self) -> str:
        """For people: ``"dp 2 x tp 2"``; axes of size 1 are left out."""
        parts = [f"{axis} {getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        return " x ".join(parts) or "one rank"


def describe_group(ranks: list[int], mesh: Mesh) -> tuple[str, int]:
    """Name and size of the group that ``ranks`` belong to: the mesh axes along which they differ ("dp", "dp+tp").

    The name is "world" for all ranks of a mesh with several axes, and "self" for a single rank. Two ranks that exchange
    a message along an axis belong to the group of that axis, so the size is the axis's size.
    """
    places = [mesh.coordinates(rank) for rank in ranks if rank < mesh.world_size]
    axes = [axis for axis in AXES if len({getattr(place, axis) for place in places}) > 1]
    size = 1
    for axis in axes:
        size *= getattr(mesh, axis)
    if len(axes) > 1 and len(ranks) == mesh.world_size:
        return "world", mesh.world_size
    return "+".join(axes) or "self", max(size, 1)
