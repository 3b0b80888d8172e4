"""Which rank is slow: the work that each rank does by itself, beside the median rank.

In a synchronous training all ranks wait for the slowest, so the time of a step is the same on all of them. A rank's own
work is what is left without waiting: data, transfer, forward, backward, optimizer.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh
from workbench.telemetry import row_views as rows
from workbench.telemetry.phases import COMPUTE, DATA, PHASE_ORDER

OWN_WORK = (*DATA, *COMPUTE)
#: a rank whose own work takes this share longer than the median's is called a straggler
STRAGGLER = 0.05


def own_work(phases: Columns, ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and a table (rank, step) of milliseconds of own work; NaN where a rank has no phases."""
    own = np.isin(phases["phase"], OWN_WORK) & (phases["rank"] < ranks)
    return rows.table_of(phases["step"][own], phases["rank"][own], phases["duration_ms"][own], ranks)


def against_median(table: np.ndarray, mesh: Mesh) -> np.ndarray:
    """A table (rank, place) relative to the median over the ranks of the same pipeline stage: 0.1 is 10 % more."""
    if not table.size:
        return table
    out = np.full(table.shape, np.nan)
    stages = np.array([mesh.coordinates(rank).pp for rank in range(table.shape[0])])
    for stage in range(mesh.pp):
        own = stages == stage
        if (~np.isnan(table[own])).any():
            median = np.nanmedian(np.where(np.isnan(table[own]).all(axis=0), 0.0, table[own]), axis=0)
            with np.errstate(invalid="ignore", divide="ignore"):
                out[own] = table[own] / median - 1
    return out


def mean_by_phase(phases: Columns, ranks: int) -> tuple[list[str], np.ndarray]:
    """Phase names in the order of a step, and a table (rank, phase) of milliseconds per step."""
    code, names = pd.factorize(phases["phase"])
    known = [name for name in PHASE_ORDER if name in set(names)]
    steps = max(1, np.unique(phases["step"]).size)
    place = np.array([known.index(name) if name in known else -1 for name in names], dtype=np.intp)[code]
    own = (place >= 0) & (phases["rank"] < ranks)
    cell = phases["rank"][own] * len(known) + place[own]
    sums = np.bincount(cell, phases["duration_ms"][own], ranks * len(known))
    return known, sums.reshape(ranks, len(known)) / steps


def own_work_by_rank(phases: Columns, mesh: Mesh) -> np.ndarray:
    """Each rank's own work in these phases against the median of its pipeline stage: 0.1 is 10 % more. (ranks,)"""
    names, table = mean_by_phase(phases, mesh.world_size)
    own = table[:, [place for place, name in enumerate(names) if name in OWN_WORK]].sum(axis=1)
    return against_median(own[:, None], mesh)[:, 0]
