"""Learning rates of parameter groups."""

from __future__ import annotations

from collections.abc import Sequence


def scaled(rates: Sequence[float], first: float) -> list[float]:
    """``rates`` of parameter groups times what makes the first of them ``first``; all ``first`` where they are equal,
    or where the first is 0 and has no ratio to the others."""
    if not rates[0] or len(set(rates)) == 1:
        return [first] * len(rates)
    return [first, *(first * (rate / rates[0]) for rate in rates[1:])]
