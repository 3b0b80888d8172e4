"""Ranks that are replaced or added while the others stay: which ones, and what the kept ones are told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from workbench.cluster.hosts.placement import Placement, rank_environment
from workbench.cluster.hosts.specs import MASTER_ADDR
from workbench.errors import format_ranks

_REBIND = "from workbench.cluster.server.rebind import rebind as _rebind; _rebind({settings!r})"


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """What happened to the ranks of a session. ``kept``: with their variables; ``replaced``: started anew, without."""

    kept: tuple[int, ...]
    replaced: tuple[int, ...]
    added: tuple[int, ...]

    def without(self, dead: Iterable[int]) -> Renewal:
        """Returns that kept ranks that are ``dead`` are replaced too."""
        gone = set(self.kept).intersection(dead)
        kept = tuple(rank for rank in self.kept if rank not in gone)
        return replace(self, kept=kept, replaced=tuple(sorted({*self.replaced, *gone})))

    def __str__(self) -> str:
        parts = []
        if self.replaced:
            was = "was" if len(self.replaced) == 1 else "were"
            parts.append(f"{format_ranks(self.replaced)} {was} started anew, without {_its(self.replaced)} variables")
        if self.added:
            parts.append(f"{format_ranks(self.added)} {'was' if len(self.added) == 1 else 'were'} added")
        if self.kept:
            keep = "keeps its" if len(self.kept) == 1 else "keep their"
            parts.append(
                f"{format_ranks(self.kept)} {keep} variables; process groups and models that span ranks must be "
                "created again"
            )
        return "; ".join(parts)


def _its(ranks: tuple[int, ...]) -> str:
    return "its" if len(ranks) == 1 else "their"


def plan_renewal(old: Placement, new: Placement, dead: Iterable[int]) -> Renewal | None:
    """Returns which ranks of ``old`` stay when they become those of ``new``; None when all have to be started again.

    A rank can stay when it is alive, its device is the same, and no rank is to go.
    """
    devices = [[binding.device for binding in placement.bindings] for placement in (old, new)]
    before, after = len(old.bindings), len(new.bindings)
    gone = set(dead)
    if devices[0] != devices[1][:before] or gone.issuperset(range(before)):
        return None
    return Renewal(
        kept=tuple(rank for rank in range(before) if rank not in gone),
        replaced=tuple(sorted(gone)),
        added=tuple(range(before, after)),
    )


def rebinding_code(placement: Placement, master_port: int) -> str:
    """Returns the code that kept ranks run: they take the cores, threads and world size of a new placement."""
    world_size = len(placement.bindings)
    settings: Mapping[int, tuple[dict[str, str], list[int]]] = {
        binding.rank: (
            rank_environment(binding, world_size=world_size, master_addr=MASTER_ADDR, master_port=master_port),
            list(binding.cores),
        )
        for binding in placement.bindings
    }
    return _REBIND.format(settings=settings)
