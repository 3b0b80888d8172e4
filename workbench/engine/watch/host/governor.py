"""Decides which gradient statistics to take in each step so that monitoring stays within its budget.

The decisions are pure functions of the data given; no clock is read. The scheme is a token bucket: every step earns the
share ``budget`` of its own duration, and the measured cost of the statistics is paid from these earnings. Two accounts
share the earnings, so that neither sort of statistics starves the other: one pays for the full set, one for the norms
of all layers. An account may go into debt by one measurement and then waits until later steps
have paid the debt. The long-run cost is therefore the budget, whatever a step or a measurement costs. An account's
credit is limited, so that a long pause is not followed by a burst of measurements.

Other monitoring costs (phases, the log's writer thread, device samples, the guard against non-finite numbers) cannot be
chosen. They are paid first: the accounts get what remains of the budget, and at least ``MIN_SHARE`` of it.
"""

from __future__ import annotations

from dataclasses import dataclass

#: choices: nothing, all statistics of all layers, the norms of all layers
NOTHING, FULL, NORMS = 0, 1, 2
#: the bits of the number agreed between ranks that hold the governor's choice
MASK = 0xFFFF
#: share of the earnings that pays for norms
NORMS_SHARE = 0.3
#: smallest share of the budget that gradient statistics get, whatever other monitoring costs
MIN_SHARE = 0.25
#: part of the budget that writing the log may take from a processor; beyond it, rows are written more rarely
WRITING_SHARE = 0.25
#: other costs are carried over up to so many steps' budgets, so that a slow start is not paid off for ever
_MAX_OWED_STEPS = 100
#: weights of a new measurement in the fast and the slow running average
_WEIGHT = 0.3
_SLOW_WEIGHT = 0.02
#: limit of an account's credit, as a multiple of what one measurement costs
_CREDIT_LIMIT = 1.5


@dataclass(slots=True)
class Account:
    """Pays for one sort of measurement. ``share``: of the earnings; ``credit_ms``: earned and not spent (negative:
    debt); ``cost_ms``: running average of one measurement's cost, None before the first."""

    share: float
    credit_ms: float = 0.0
    cost_ms: float | None = None
    measurements: int = 0

    def earn(self, ms: float) -> None:
        """Take the account's share of ``ms``, up to the limit of its credit."""
        self.credit_ms += ms * self.share
        if self.cost_ms is not None:
            self.credit_ms = min(self.credit_ms, max(_CREDIT_LIMIT * self.cost_ms, ms * self.share))

    def pay(self, ms: float) -> None:
        """Take what a measurement has cost from the credit, and learn from it what one costs."""
        self.credit_ms -= ms
        self.measurements += 1
        if self.cost_ms is None or self.measurements == 2:  # the first one in a process costs more than later ones
            self.cost_ms = ms
        else:
            self.cost_ms = (1 - _WEIGHT) * self.cost_ms + _WEIGHT * ms

    def can_afford_another(self, pending: int) -> bool:
        """Whether credit remains after paying for the ``pending`` measurements that were chosen and not paid yet."""
        if self.cost_ms is None:
            return self.credit_ms > 0 and not pending
        return self.credit_ms - pending * self.cost_ms > 0


class Governor:
    """``choose`` says, one step ahead, what to measure; ``account`` books the cost of the step that ended.

    ``budget``: share of the step time (0.01: 1 %). ``norms``: whether ``NORMS`` is a choice. Choices are integers, so
    that ranks can agree on them: ``NOTHING``, ``FULL``, ``NORMS``. ``spent_ms`` and ``passed_ms`` are the cost of
    monitoring and the time of all steps so far.
    """

    def __init__(self, *, budget: float, norms: bool) -> None:
        self.budget = budget
        share = NORMS_SHARE if norms else 0.0
        self._full = Account(1 - share)
        self._norms = Account(share)
        self._pending: list[int] = []  # chosen, and not accounted for yet
        self._step_ms: float | None = None
        self._owed_ms = 0.0
        self._other_ms = 0.0
        self.spent_ms = 0.0
        self.passed_ms = 0.0

    def choose(self) -> int:
        """Choose what to measure in a step, one step ahead of it."""
        choice = NOTHING
        if self._full.can_afford_another(self._pending.count(FULL)):
            choice = FULL
        elif self._norms.share and self._norms.can_afford_another(self._pending.count(NORMS)):
            choice = NORMS
        self._pending.append(choice)
        return choice

    def account(self, choice: int, cost_ms: float, step_ms: float, other_ms: float = 0.0) -> None:
        """Book a step that took ``step_ms``: ``cost_ms`` of it for the measurement ``choice``, ``other_ms`` for all
        other monitoring."""
        if choice in self._pending:
            self._pending.remove(choice)
        self.spent_ms += cost_ms + other_ms
        self.passed_ms += step_ms
        own_ms = max(0.0, step_ms - cost_ms)
        self._step_ms = own_ms if self._step_ms is None else (1 - _WEIGHT) * self._step_ms + _WEIGHT * own_ms
        remaining_ms = self._pay_other_costs(other_ms, self.budget * step_ms)
        self._full.earn(remaining_ms)
        self._norms.earn(remaining_ms)
        if choice == NORMS:
            self._norms.pay(cost_ms)
        elif choice == FULL:
            self._full.pay(cost_ms)
        else:
            self._full.credit_ms -= cost_ms  # cost of an earlier measurement that arrived late

    def _pay_other_costs(self, other_ms: float, budget_ms: float) -> float:
        """Pay other monitoring from a step's budget and return what remains. The costs are spread over steps, as they
        come in bursts: the log's thread writes a few times per second."""
        self._owed_ms = min(self._owed_ms + other_ms, _MAX_OWED_STEPS * budget_ms)
        paid_ms = min(self._owed_ms, (1 - MIN_SHARE) * budget_ms)
        self._owed_ms -= paid_ms
        self._other_ms += _SLOW_WEIGHT * (paid_ms - self._other_ms)
        return budget_ms - paid_ms

    @property
    def cost(self) -> float:
        """Share of all steps' time so far that monitoring cost (0.01: 1 %)."""
        return self.spent_ms / self.passed_ms if self.passed_ms else 0.0

    @property
    def interval(self) -> int | None:
        """Steps between full sets that the budget pays for; None before the first full set."""
        if self._full.cost_ms is None or not self._step_ms:
            return None
        remaining_ms = max(self.budget * self._step_ms - self._other_ms, MIN_SHARE * self.budget * self._step_ms)
        earned_ms = remaining_ms * self._full.share
        return max(1, -int(-self._full.cost_ms // earned_ms))
