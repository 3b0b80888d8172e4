"""Which rank is slow: the work that each rank does by itself, beside the other ranks.

In a synchronous training all ranks wait for the slowest, so the time of a step is the same on all of them. A rank's own
work is what is left without waiting: data, transfer, forward, backward, optimizer.

``find_straggler`` is the only place that calls a rank a straggler. Everything that names one shows its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh
from workbench.telemetry import row_views as rows
from workbench.telemetry.phases import COMPUTE, DATA, PHASE_ORDER
from workbench.telemetry.significance import TRIMMED, p_above

OWN_WORK = (*DATA, *COMPUTE)
#: a rank is a straggler when the others lose more than this share of the step time to it,
LEAST_SHARE = 0.05
#: beyond what noise explains: p-value of the trimmed t-test over the steps, times the number of ranks. The next slowest
#: rank must be faster by the same test
SIGNIFICANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """A rank for which the others wait. ``lost_ms`` per step, ``lost_share`` of its step time; ``phase`` is where it
    needs longer than the others, ``steps_share`` the share of steps in which it is the slowest. ``p``: how often noise
    alone would make some rank lose more than ``LEAST_SHARE`` so clearly.

    Phase "communication": it needs longer to hand over what it sends. What is slow in the midst of a collective (a
    link, say) holds up all ranks alike, from which none can be told. The reductions of torch's DDP are handed over by
    its backward pass: what holds one of them up there counts as "backward".
    """

    rank: int
    phase: str
    lost_ms: float
    lost_share: float
    steps_share: float
    p: float


def find_straggler(
    own: pd.DataFrame, posted: pd.DataFrame | None, totals: pd.Series, waits: pd.Series
) -> Straggler | None:
    """The rank that the others wait for; None where none can be told.

    ``own``, ``posted``: milliseconds per (step, rank) of each rank's own time (``phases.own_time``) and of handing
    operations over (``phases.posting_time``). ``totals``, ``waits``: milliseconds of each rank's step, and of them in
    communication and bubble. In a pipeline a stage that has more work than the others looks like a slow rank, and
    limits the pipeline just so.
    """
    if totals.size < 2:
        return None
    candidates = [_candidate(own, totals, _trimmed_mean)]
    if posted is not None:
        candidates.append(_candidate(posted, totals, _low_quartile, waits))  # it is part of these
    known = [found for found in candidates if found is not None]
    return max(known, key=lambda found: found.lost_ms, default=None)


def _candidate(
    own: pd.DataFrame,
    totals: pd.Series,
    typical: Callable[[np.ndarray], np.ndarray],
    most: pd.Series | None = None,
) -> Straggler | None:
    """The slowest rank, if the tests call it a straggler. A step's loss is the rank's time less the median of the
    others'. ``typical``: (step, rank, phase), NaN where there is none -> (rank, phase). ``most``: upper limit of each
    rank's loss."""
    steps, step = np.unique(own.index.get_level_values("step"), return_inverse=True)
    ranks, rank = np.unique(own.index.get_level_values("rank"), return_inverse=True)
    table = np.full((steps.size, ranks.size, own.shape[1]), np.nan)
    table[step, rank] = own.to_numpy(dtype=float)
    per_rank = typical(table)
    second, worst = (int(place) for place in per_rank.sum(axis=1).argsort()[-2:])
    slow = int(ranks[worst])
    each = table.sum(axis=2)
    lost = each[:, worst] - np.median(np.delete(each, worst, axis=1), axis=1)
    known = ~np.isnan(each).any(axis=1)
    step_ms = float(totals[slow])
    p = min(1.0, ranks.size * p_above(lost[known], LEAST_SHARE * step_ms))
    lost_ms = float(per_rank[worst].sum() - np.median(np.delete(per_rank.sum(axis=1), worst)))
    lost_ms = lost_ms if most is None else min(lost_ms, float(most[slow]))
    p_second = 2 * p_above((each[:, worst] - each[:, second])[known], 0.0)
    if max(p, p_second) >= SIGNIFICANCE or lost_ms < LEAST_SHARE * step_ms:
        return None
    steps_share = float((each[known].argmax(axis=1) == worst).mean())
    excess = per_rank[worst] - np.median(np.delete(per_rank, worst, axis=0), axis=0)
    phase = str(own.columns[int(excess.argmax())])
    share = lost_ms / step_ms
    return Straggler(rank=slow, phase=phase, lost_ms=lost_ms, lost_share=share, steps_share=steps_share, p=p)


def _low_quartile(values: np.ndarray) -> np.ndarray:
    """Of few steps, some on a busy machine: noise only ever adds."""
    return np.asarray(np.nanquantile(values, 0.25, axis=0))


def _trimmed_mean(values: np.ndarray) -> np.ndarray:
    """Without the lowest and the highest fifth of the steps, phase by phase."""
    count = (~np.isnan(values)).sum(axis=0)
    cut = (TRIMMED * count).astype(int)
    place = np.arange(len(values))[:, None, None]
    kept = (place >= cut) & (place < count - cut)
    return np.asarray(np.where(kept, np.sort(values, axis=0), 0.0).sum(axis=0) / np.maximum(1, count - 2 * cut))


def own_work(phases: Columns, ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and a table (rank, step) of milliseconds of own work; NaN where a rank has no phases."""
    own = np.isin(phases["phase"], OWN_WORK) & (phases["rank"] < ranks)
    return rows.table_of(phases["step"][own], phases["rank"][own], phases["duration_ms"][own], ranks)


def against_others(table: np.ndarray, mesh: Mesh) -> np.ndarray:
    """A table (rank, place) relative to the median over the other ranks of the same pipeline stage: 0.1 is 10 % more. A
    rank without others is compared with itself."""
    out = np.full(table.shape, np.nan)
    stages = np.array([mesh.coordinates(rank).pp for rank in range(table.shape[0])])
    for stage in range(mesh.pp) if table.size else ():
        own = stages == stage
        with np.errstate(invalid="ignore", divide="ignore"):
            out[own] = table[own] / _median_of_others(table[own]) - 1
    return out


def _median_of_others(table: np.ndarray) -> np.ndarray:
    """Per column and row the median of the other rows; NaN are passed over."""
    order = np.argsort(table, axis=0, kind="stable")
    ordered = np.take_along_axis(table, order, axis=0)
    place = np.argsort(order, axis=0, kind="stable")
    others = (~np.isnan(table)).sum(axis=0) - 1

    def of_others(index: np.ndarray) -> np.ndarray:
        index = np.broadcast_to(np.clip(index, 0, max(0, len(table) - 2)), table.shape)
        return np.take_along_axis(ordered, np.minimum(index + (index >= place), len(table) - 1), axis=0)

    middle = (of_others((others - 1) // 2) + of_others(others // 2)) / 2
    return np.where(others > 0, middle, table)


def mean_by_phase(phases: Columns, ranks: int) -> tuple[list[str], np.ndarray]:
    """Phase names in the order of a step, and a table (rank, phase) of milliseconds per step: the mean over those steps
    of the rank that have phases (0 for a rank without any)."""
    code, names = pd.factorize(phases["phase"])
    known = [name for name in PHASE_ORDER if name in set(names)]
    place = np.array([known.index(name) if name in known else -1 for name in names], dtype=np.intp)[code]
    own = (place >= 0) & (phases["rank"] < ranks)
    rank = phases["rank"][own]
    sums = np.bincount(rank * len(known) + place[own], phases["duration_ms"][own], ranks * len(known))
    span = int(phases["step"].max(initial=0)) + 1
    steps = np.bincount(np.unique(rank * span + phases["step"][own]) // span, minlength=ranks)
    return known, sums.reshape(ranks, len(known)) / np.maximum(1, steps)[:, None]


def own_work_by_rank(phases: Columns, mesh: Mesh) -> np.ndarray:
    """Each rank's own work in these phases beside the others of its pipeline stage: 0.1 is 10 % more. (ranks,)"""
    names, table = mean_by_phase(phases, mesh.world_size)
    own = table[:, [place for place, name in enumerate(names) if name in OWN_WORK]].sum(axis=1)
    return against_others(own[:, None], mesh)[:, 0]
