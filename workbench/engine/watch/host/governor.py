"""Decides what to watch so that watching keeps within its budget: data in, a decision out, no clock.

Every step earns ``budget`` of its time; what watching cost is paid from that. Two purses, so that neither starves the
other: one for the full set (all layers), one for a single group of layers, in turn. A purse buys when it owes nothing,
and is then in debt until the following steps have paid it back: so the long-run cost is the budget, whatever a step or
a set costs. Earnings that nothing needs are not hoarded, so that no burst follows a long pause.

What else watching costs (phases, the log's thread, device samples, the guard) cannot be chosen, so it is paid first:
the purses get what it leaves of the budget, and ``LEAST_SHARE`` of the budget in any case.
"""

from __future__ import annotations

from dataclasses import dataclass

NOTHING, FULL, FIRST_GROUP = 0, 1, 2
#: bits of the agreed number that are the governor's
MASK = 0xFFFF
#: the groups' part of the earnings
GROUP_SHARE = 0.3
#: the part of the budget that gradient statistics have, whatever all the rest costs
LEAST_SHARE = 0.25
#: what the rest costs is remembered for so many steps' budgets: a costly start is paid back, not for ever
_REMEMBERED = 100
#: weight of a new measurement in the running averages
_WEIGHT = 0.3
_SLOW_WEIGHT = 0.02
#: a purse holds at most so many times what it pays for
_PURSE_LIMIT = 1.5


@dataclass(slots=True)
class _Purse:
    """Milliseconds earned and not spent, and what one purchase costs (None: not known yet)."""

    share: float
    credit: float = 0.0
    price: float | None = None
    bought: int = 0

    def earn(self, ms: float) -> None:
        self.credit += ms * self.share
        if self.price is not None:
            self.credit = min(self.credit, max(_PURSE_LIMIT * self.price, ms * self.share))

    def pay(self, ms: float) -> None:
        self.credit -= ms
        self.bought += 1
        if self.price is None or self.bought == 2:  # the first of a process costs more than all that follow
            self.price = ms
        else:
            self.price = (1 - _WEIGHT) * self.price + _WEIGHT * ms

    def affords(self, ordered: int) -> bool:
        """Whether nothing will be owed once what was ``ordered`` is paid."""
        if self.price is None:
            return self.credit > 0 and not ordered
        return self.credit - ordered * self.price > 0


class Governor:
    """``choose`` what to watch in the next step, ``account`` for the step that ended.

    ``budget``: share of the step time (0.01: 1 %). ``groups``: into how many groups the layers are divided; 0 for none.
    Choices are numbers, so that they can be agreed between ranks: 0 nothing, 1 the full set, 2 + k group k.
    """

    def __init__(self, *, budget: float, groups: int) -> None:
        self.budget = budget
        self.groups = groups
        share = GROUP_SHARE if groups else 0.0
        self._full = _Purse(1 - share)
        self._group = _Purse(share)
        self._next_group = 0
        self._committed: list[int] = []  # chosen, and not accounted for yet
        self._step_ms: float | None = None
        self._owed_ms = 0.0
        self._taken_ms = 0.0
        self.spent_ms = 0.0
        self.passed_ms = 0.0

    def choose(self) -> int:
        """What to watch next, decided a step ahead."""
        choice = NOTHING
        if self._full.affords(self._committed.count(FULL)):
            choice = FULL
        elif self.groups and self._group.affords(sum(code >= FIRST_GROUP for code in self._committed)):
            choice = FIRST_GROUP + self._next_group
            self._next_group = (self._next_group + 1) % self.groups
        self._committed.append(choice)
        return choice

    def account(self, choice: int, cost_ms: float, step_ms: float, rest_ms: float = 0.0) -> None:
        """A step watched as ``choice`` says has ended after ``step_ms``, of which that cost ``cost_ms``, and all else
        that watches ``rest_ms``."""
        if choice in self._committed:
            self._committed.remove(choice)
        self.spent_ms += cost_ms + rest_ms
        self.passed_ms += step_ms
        own_ms = max(0.0, step_ms - cost_ms)
        self._step_ms = own_ms if self._step_ms is None else (1 - _WEIGHT) * self._step_ms + _WEIGHT * own_ms
        left_ms = self._left_by(rest_ms, self.budget * step_ms)
        self._full.earn(left_ms)
        self._group.earn(left_ms)
        if choice >= FIRST_GROUP:
            self._group.pay(cost_ms)
        elif choice == FULL:
            self._full.pay(cost_ms)
        else:
            self._full.credit -= cost_ms  # what is left over of an earlier step

    def _left_by(self, rest_ms: float, budget_ms: float) -> float:
        """What of the budget of a step is left once the rest is paid, which comes in lumps: the log's thread writes
        some times a second."""
        self._owed_ms = min(self._owed_ms + rest_ms, _REMEMBERED * budget_ms)
        taken_ms = min(self._owed_ms, (1 - LEAST_SHARE) * budget_ms)
        self._owed_ms -= taken_ms
        self._taken_ms += _SLOW_WEIGHT * (taken_ms - self._taken_ms)
        return budget_ms - taken_ms

    @property
    def cost(self) -> float:
        """Share of the time so far that watching cost."""
        return self.spent_ms / self.passed_ms if self.passed_ms else 0.0

    @property
    def interval(self) -> int | None:
        """Steps between full sets that the budget pays for, as far as known."""
        if self._full.price is None or not self._step_ms:
            return None
        left_ms = max(self.budget * self._step_ms - self._taken_ms, LEAST_SHARE * self.budget * self._step_ms)
        earned = left_ms * self._full.share
        return max(1, -int(-self._full.price // earned))


def balanced_groups(sizes: dict[str, int], most: int = 48) -> list[list[str]]:
    """Layers divided into at most ``most`` groups of about equal size, the largest first: the same on every rank."""
    groups: list[list[str]] = [[] for _ in range(min(most, len(sizes)))]
    totals = [0] * len(groups)
    for layer in sorted(sizes, key=lambda name: (-sizes[name], name)):
        place = totals.index(min(totals))
        groups[place].append(layer)
        totals[place] += sizes[layer]
    return groups
