"""At which steps phases and collectives are recorded: intervals that all ranks have in force at the same step.

Rank 0 measures what recording costs and proposes intervals that keep it within its share of the budget. The proposal
travels with what the ranks agree on at every step (``engine.agree.control``): every rank records the same steps.
"""

from __future__ import annotations

#: collectives are recorded in the first steps and then in every tenth step, or more rarely where that costs too much
FIRST_STEPS = 3
COLLECTIVES_EVERY = 10
#: shares of the monitor's budget for recording collectives and for recording phases
COLLECTIVES_SHARE = 0.1
PHASES_SHARE = 0.4
#: intervals are 2**k steps (phases) and 10 * 2**k steps (collectives); the largest k of each
MAX_PHASES_EXPONENT, MAX_COLLECTIVES_EXPONENT = 6, 7
#: of the number that ranks agree on, the first bit of each exponent; the bits below are the governor's (``governor``)
_PHASES_BIT, _COLLECTIVES_BIT, _EXPONENT = 16, 20, 0xF
#: cost of writing a record in the log's thread, relative to the cost of making it
_WRITE_COST = 0.6
#: weight of a new measurement in a running average
_WEIGHT = 0.2
#: recorded steps after a change before phases are recorded more often again
_STEPS_BEFORE_HALVING = 8


class RecordingIntervals:
    """The intervals in force, ``phases_every`` and ``collectives_every`` (steps), and those that rank 0 proposes.

    ``budget``: share of the step time for all monitoring. The ``account_`` methods take the cost of a step in which
    that was recorded, and the time of the step, in milliseconds.
    """

    def __init__(self, budget: float) -> None:
        self.phases_every = 1
        self.collectives_every = COLLECTIVES_EVERY
        self._budget = budget
        self._phases_exponent = 0
        self._collectives_exponent = 0
        self._cost_ms: float | None = None
        self._step_ms = 0.0
        self._steps_since_change = 0

    def proposal(self) -> int:
        """The proposed intervals, as the part of the agreed number that belongs to them."""
        return self._phases_exponent << _PHASES_BIT | self._collectives_exponent << _COLLECTIVES_BIT

    def adopt(self, agreed: int) -> None:
        """Put the intervals of the agreed number into force."""
        self.phases_every = 1 << (agreed >> _PHASES_BIT & _EXPONENT)
        self.collectives_every = COLLECTIVES_EVERY << (agreed >> _COLLECTIVES_BIT & _EXPONENT)

    def records_collectives(self, step: int) -> bool:
        """Whether the collectives of a step are recorded, and with them its phases."""
        return step <= FIRST_STEPS or step % self.collectives_every == 0

    def records_phases(self, step: int) -> bool:
        """Whether the phases of a step are recorded."""
        return step % self.phases_every == 0 or self.records_collectives(step)

    def account_collectives(self, cost_ms: float, step_ms: float) -> None:
        """Double the proposed interval until the cost, spread over the interval, is within its share."""
        paid_ms = COLLECTIVES_SHARE * self._budget * step_ms
        while (
            cost_ms > paid_ms * (COLLECTIVES_EVERY << self._collectives_exponent)
            and self._collectives_exponent < MAX_COLLECTIVES_EXPONENT
        ):
            self._collectives_exponent += 1

    def account_phases(self, cost_ms: float, step_ms: float) -> None:
        """Double or halve the proposed interval, to match the share of the budget."""
        cost_ms *= 1 + _WRITE_COST
        if self._cost_ms is None:
            self._cost_ms, self._step_ms = cost_ms, step_ms
        self._cost_ms += _WEIGHT * (cost_ms - self._cost_ms)
        self._step_ms += _WEIGHT * (step_ms - self._step_ms)
        self._steps_since_change += 1
        if 1 << self._phases_exponent != self.phases_every:
            return  # the last proposal is not in force yet
        paid_ms = PHASES_SHARE * self._budget * self._step_ms * self.phases_every
        before = self._phases_exponent
        if self._cost_ms > paid_ms and before < MAX_PHASES_EXPONENT:
            self._phases_exponent += 1
        elif self._cost_ms < paid_ms / 4 and before and self._steps_since_change >= _STEPS_BEFORE_HALVING:
            self._phases_exponent -= 1
        if self._phases_exponent != before:
            self._steps_since_change = 0
