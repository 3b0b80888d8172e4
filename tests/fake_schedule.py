"""The schedule 1F1B of a pipeline, for fake runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator


@functools.cache
def schedule(pp: int, micro_batches: int) -> dict[int, list[tuple[str, int, float, float]]]:
    """1F1B in units of a forward (a backward takes two): stage -> (phase, micro-batch, start, length)."""
    orders = {}
    for stage in range(pp):
        warm = min(micro_batches, pp - 1 - stage)
        order = [("forward", micro) for micro in range(warm)]
        for micro in range(micro_batches - warm):
            order += [("forward", warm + micro), ("backward", micro)]
        orders[stage] = order + [("backward", micro) for micro in range(micro_batches - warm, micro_batches)]
    ends: dict[tuple[str, int, int], float] = {}
    free = dict.fromkeys(range(pp), 0.0)
    bars: dict[int, list[tuple[str, int, float, float]]] = {stage: [] for stage in range(pp)}
    while any(orders.values()):
        for stage in range(pp):
            while orders[stage]:
                name, micro = orders[stage][0]
                before = (name, micro, stage + (1 if name == "backward" else -1))
                if 0 <= before[2] < pp and before not in ends:
                    break
                start = max(free[stage], ends.get(before, 0.0))
                length = 1.0 if name == "forward" else 2.0
                bars[stage].append((name, micro, start, length))
                free[stage] = ends[name, micro, stage] = start + length
                orders[stage].pop(0)
    return bars


def pipeline_length(pp: int, micro_batches: int) -> float:
    """Units until the last stage has ended."""
    return max(start + length for bars in schedule(pp, micro_batches).values() for _, _, start, length in bars)


def one_f_one_b(pp: int, micro_batches: int, stage: int) -> Iterator[tuple[str, int, float]]:
    """What a stage does, of which micro-batch, and how long; it waits for some before their forward or backward."""
    at = 0.0
    for name, micro, start, length in schedule(pp, micro_batches)[stage]:
        if start > at:
            yield "bubble", micro, start - at
        yield name, micro, length
        at = start + length
