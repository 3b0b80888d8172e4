"""The ranks that share data: all of a process group, or those that run a cell."""

from __future__ import annotations

import pickle
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from workbench.core.user_code.user_modules import CELL_RANKS
from workbench.errors import ConfigError

_PAUSE_S = 0.005
#: ranks -> how often they have met
_meetings: dict[tuple[int, ...], int] = {}


@dataclass(frozen=True)
class Members:
    """``ranks``, ascending, of which this one is number ``place``. ``is_whole``: all ranks of the process group."""

    ranks: tuple[int, ...]
    place: int
    is_whole: bool

    @classmethod
    def here(cls) -> Members:
        """Those that run what this process runs."""
        world = tuple(range(dist.get_world_size() if dist.is_initialized() else 1))
        rank = dist.get_rank() if len(world) > 1 else 0
        chosen = tuple(sorted(set(world).intersection(_cell_ranks())))
        if rank not in chosen:  # not in a cell, or in a group that the cell has made with other numbers
            chosen = world
        return cls(chosen, chosen.index(rank), len(chosen) == len(world))

    def gathered(self, value: Any) -> list[Any]:
        """What each of them passes, in their order. Collective over them, and over no other rank."""
        if len(self.ranks) == 1:
            return [value]
        if self.is_whole:
            found: list[Any] = [None] * len(self.ranks)
            dist.all_gather_object(found, value)
            return found
        return self._through_store(value)

    def _through_store(self, value: Any) -> list[Any]:
        """A group of some ranks would last as long as the ranks do: they leave each other messages instead."""
        store = dist.distributed_c10d._get_default_store()
        meeting = _meetings[self.ranks] = _meetings.get(self.ranks, 0) + 1
        name = f"share/{'-'.join(map(str, self.ranks))}/{meeting}"
        store.set(f"{name}/{self.ranks[self.place]}", pickle.dumps(value))  # type: ignore[arg-type]  # bytes are taken too
        deadline = time.monotonic() + default_pg_timeout.total_seconds()
        for rank in self.ranks:
            while not store.check([f"{name}/{rank}"]):  # its own wait could not be interrupted
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"share(): rank {rank} did not call it within {default_pg_timeout}", field="share"
                    )
                time.sleep(_PAUSE_S)
        return [pickle.loads(store.get(f"{name}/{rank}")) for rank in self.ranks]


def _cell_ranks() -> list[int]:
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return [] if shell is None else list(shell.user_ns.get(CELL_RANKS, []))
