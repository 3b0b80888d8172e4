"""Phases and collectives as frames, and the figures that follow from them: pure functions."""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.core.columns import Columns

#: the rank does something itself
COMPUTE = ("forward", "backward", "optimizer")
#: the rank waits for input
DATA = ("data", "transfer")
#: the rank waits for other ranks
WAITING = ("communication", "bubble")
#: time of the step that is none of training's own
ASIDE = ("monitor",)
#: between the steps: not part of a step's time
BETWEEN = ("evaluate", "checkpoint", "paused")
#: hidden behind other phases: not part of a step's time
HIDDEN = ("overlapped",)
#: all phases, in the order in which a step enters them; figures draw them in it
PHASE_ORDER = (*DATA, *COMPUTE, "communication", *HIDDEN, "bubble", "evaluate", "checkpoint", *ASIDE, "paused")


def phases_frame(rows: Columns) -> pd.DataFrame:
    """Rows of the ``phases`` table: step, rank, phase, micro_batch, start_ms, duration_ms; by step, rank and start.

    A phase that a step enters several times (of the same micro-batch) is one row: the start of the first, the duration
    of all. Waiting ("communication", "bubble") is a row per phase of work that it interrupts or follows: that in the
    forward pass, in the backward pass and in the optimizer are three. Without "overlapped", evaluate, checkpoint and
    paused, the rows of a step and rank add up to its time.
    """
    frame = pd.DataFrame(rows)
    return frame.sort_values(["step", "rank", "start_ms"], kind="stable", ignore_index=True)


def in_turn(rows: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each row of the ``phases`` table, in milliseconds of its step, such that none of a step and
    rank overlap.

    A row is a sum over visits, so that work from its first start on reaches into the waiting that interrupts it. In the
    order of their starts each row begins at its own start or at the end of the one before, whichever is later: waiting
    within a phase comes after its work, and nothing else moves. "overlapped" and "monitor" run beside the others and
    stay where they are.
    """
    start, length = rows["start_ms"].astype(float), rows["duration_ms"].astype(float)
    ends = start + length
    taken = np.flatnonzero(~np.isin(rows["phase"], (*ASIDE, *HIDDEN)))
    order = taken[np.lexsort((start[taken], rows["rank"][taken], rows["step"][taken]))]
    step, rank = rows["step"][order], rows["rank"][order]
    done = np.cumsum(length[order])
    # end of row i = what rows up to i last + the largest over rows j <= i of (start of j - what rows before j last)
    latest = start[order] - (done - length[order])
    reach = 1
    while reach < order.size and (same := (step[reach:] == step[:-reach]) & (rank[reach:] == rank[:-reach])).any():
        latest[reach:] = np.where(same, np.maximum(latest[reach:], latest[:-reach]), latest[reach:])
        reach *= 2
    ends[order] = done + latest
    start[order] = ends[order] - length[order]
    return start, ends


def by_phase(rows: Columns) -> pd.DataFrame:
    """Milliseconds per (step, rank), one column per phase that is part of a step; micro-batches are added up."""
    code, names = pd.factorize(rows["phase"])
    known = [*DATA, *COMPUTE, *WAITING, *ASIDE]
    columns = [*known, *sorted(set(names) - {*known, *BETWEEN, *HIDDEN})]
    place = np.array([columns.index(name) if name in columns else -1 for name in names], dtype=np.intp)[code]
    taken = place >= 0
    step, rank, place = rows["step"][taken], rows["rank"][taken], place[taken]
    # bincount instead of a pivot table: the panel asks for this every other second, also of 1,024 ranks
    span = int(rank.max(initial=0)) + 1
    pairs, row = np.unique(step * span + rank, return_inverse=True)
    cells = row * len(columns) + place
    sums = np.bincount(cells, weights=rows["duration_ms"][taken], minlength=pairs.size * len(columns))
    index = pd.MultiIndex.from_arrays([pairs // span, pairs % span], names=["step", "rank"])
    return pd.DataFrame(sums.reshape(pairs.size, len(columns)), index=index, columns=pd.Index(columns, name="phase"))


def bubble_share(stages: int, micro_batches: int) -> float:
    """Share of a step that a stage of a balanced 1F1B pipeline is idle: ``(p - 1) / (m + p - 1)``.

    Narayanan et al. 2021 (Megatron-LM), section 2.2: their ``(p - 1) / m`` is of the ideal time, this is of the whole.
    """
    return (stages - 1) / (micro_batches + stages - 1)


#: Factor from algorithm to bus bandwidth for n ranks: nccl-tests, doc/PERFORMANCE.md. It makes figures of different
#: operations and numbers of ranks comparable with the speed of the slowest link.
BUS_FACTORS = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "gather": lambda n: (n - 1) / n,
    "scatter": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "reduce": lambda n: 1.0,
    "send": lambda n: 1.0,
    "recv": lambda n: 1.0,
}


def bus_factor(kind: str, ranks: int) -> float:
    """Bus bandwidth over algorithm bandwidth; NaN for a kind without one (barrier)."""
    factor = BUS_FACTORS.get(kind)
    return factor(ranks) if factor is not None else float("nan")


def collectives_frame(rows: Columns) -> pd.DataFrame:
    """Rows of the ``collectives`` table by step, rank and start, with two columns more.

    ``algorithm_gb_per_s``: bytes over duration, in 10**9 bytes per second; ``bus_gb_per_s``: that times ``bus_factor``
    (nccl-tests, doc/PERFORMANCE.md). The duration has the waiting for the last rank in it: where ranks arrive at
    different times, the fastest row of a collective says most about the network.
    """
    frame = pd.DataFrame(rows)
    frame = frame.sort_values(["step", "rank", "start_ms"], kind="stable", ignore_index=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        frame["algorithm_gb_per_s"] = frame["bytes"].astype(float) / frame["duration_ms"].astype(float) / 1e6
    factors = [bus_factor(kind, n) for kind, n in zip(frame["kind"], frame["group_size"], strict=True)]
    frame["bus_gb_per_s"] = frame["algorithm_gb_per_s"] * np.array(factors, dtype=float)
    return frame


def own_time(phases: pd.DataFrame) -> pd.DataFrame:
    """What each rank needed itself, per (step, rank): ``by_phase`` without waiting.

    Ranks that train together end each step together, whoever is slow: the others wait, and their waiting shows as
    communication or as a bubble. So a slow rank is found by what remains.
    """
    return phases.drop(columns=[c for c in (*WAITING, *ASIDE) if c in phases])


def posting_time(collectives: Columns) -> pd.Series:
    """What of communication is a rank's own, in milliseconds per (step, rank) of the steps whose collectives were
    recorded: handing operations to the backend (``post_ms``).

    Of the calls of one kind in a group it is the median, times their number: a rank that lost its processor in the
    midst of one call has no slow network. Messages that were handed over together, and so at one time, count once.
    """
    names = ("step", "rank", "group", "kind", "start_ms", "post_ms")
    posted = pd.DataFrame({name: collectives[name] for name in names}).dropna(subset=["post_ms"])
    posted["at"] = (posted["start_ms"] + posted["post_ms"]).round(3)
    posted = posted.drop_duplicates(["step", "rank", "at"])
    calls = posted.groupby(["step", "rank", "group", "kind"], dropna=False)["post_ms"]
    return (calls.median() * calls.count()).groupby(level=["step", "rank"]).sum()


def skew_ms(own: pd.DataFrame) -> pd.Series:
    """Per step: the largest minus the smallest own time of ranks, in milliseconds."""
    totals = own.sum(axis=1).groupby(level="step")
    return totals.max() - totals.min()
