"""Looks at ranks at little cost: some files of each are read, no rank is asked anything."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from workbench.core.live.collective_row import read_live
from workbench.core.live.rank_row import CELL
from workbench.diagnosis.process import state_of
from workbench.diagnosis.stalls import Glimpse
from workbench.diagnosis.view import read


def glimpses(directory: Path, ranks: Iterable[int]) -> dict[int, Glimpse]:
    """Returns what is seen of the ranks that live. ``directory``: that of their rank server."""
    found = {}
    for rank in ranks:
        row = read(directory, rank)
        state = "" if row is None else state_of(row.pid)
        if row is None or not state:
            continue
        live = read_live(directory, rank) if row.phase == CELL else None
        waits_since = live.since if live is not None and live.waiting else None
        found[rank] = Glimpse(row=row, state=state, waits_since=waits_since)
    return found
