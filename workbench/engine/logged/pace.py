"""Keeps what logged numbers cost within a share of the step time: many names are taken at some of the steps only.

Rank 0 decides for the next step, and all ranks skip the same ones, so that a value is still that of all ranks. Only
names that come in every third step or more often are skipped; what is logged once in a while is always taken.
"""

from __future__ import annotations

from collections.abc import Iterable

#: part of the number agreed between ranks: the frequent names of this step are skipped
BIT = 1 << 32
#: so many frequent names are always taken
FREE_NAMES = 10
#: a name is frequent when it came at so many steps within so many
_TIMES, _WITHIN = 10, 30
#: of the budget of monitoring, for logged numbers
_SHARE = 0.5
#: what the thread of the log costs per number, as a multiple of what the step itself does for it
_WRITING = 1.0
_WEIGHT = 0.2


class Pace:
    """``budget``: of monitoring, as a share of the step time."""

    def __init__(self, budget: float) -> None:
        self._share = budget * _SHARE
        self._first: dict[str, tuple[int, int]] = {}  # name -> the first step, and at how many it came since
        self.frequent: set[str] = set()
        self._credit_ms = 0.0
        self._cost_ms = 0.0  # running average of a step whose numbers are taken
        self._step_ms = 0.0

    def came(self, step: int, names: Iterable[str]) -> None:
        """These names were logged in this step."""
        for name in names:
            if name in self.frequent:
                continue
            first, times = self._first.get(name, (step, 0))
            if step - first >= _WITHIN:
                first, times = step, 0
            self._first[name] = (first, times + 1)
            if times + 1 >= _TIMES:
                self.frequent.add(name)
                del self._first[name]

    def account(self, cost_ms: float, step_ms: float, *, taken: bool) -> None:
        """A step took ``step_ms``, of which logging took ``cost_ms``."""
        cost_ms *= 1 + _WRITING
        self._step_ms = step_ms if not self._step_ms else self._step_ms + _WEIGHT * (step_ms - self._step_ms)
        if taken:
            self._cost_ms = cost_ms if not self._cost_ms else self._cost_ms + _WEIGHT * (cost_ms - self._cost_ms)
        self._credit_ms = min(self._credit_ms + self._share * step_ms - cost_ms, self._cost_ms)
        self._credit_ms = max(self._credit_ms, -self._cost_ms)  # a slow first step is not paid off for ever

    def skips_next(self) -> bool:
        """Whether the frequent names of the next step are too dear."""
        return len(self.frequent) > FREE_NAMES and self._credit_ms <= 0

    @property
    def interval(self) -> int:
        """Steps between two whose numbers are taken, about."""
        return max(1, -int(-self._cost_ms // max(self._share * self._step_ms, 1e-9)))

    @property
    def cost(self) -> float:
        """Share of a step, if all its numbers were taken."""
        return self._cost_ms / self._step_ms if self._step_ms else 0.0
