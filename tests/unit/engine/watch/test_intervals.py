"""Which steps are recorded: what rank 0 proposes is in force on every rank at once, and keeps within its share."""

from __future__ import annotations

import pytest

from workbench.engine.watch.host.governor import MASK
from workbench.engine.watch.host.intervals import COLLECTIVES_EVERY, RecordingIntervals


def test_a_proposal_is_in_force_once_it_is_adopted_and_leaves_the_governors_bits_alone() -> None:
    first, other = RecordingIntervals(0.01), RecordingIntervals(0.01)
    first.account_phases(10.0, 100.0)
    first.account_collectives(10.0, 100.0)
    other.account_phases(1e-9, 100.0)
    assert first.phases_every == 1 and first.proposal() & MASK == 0
    for intervals in (first, other):
        intervals.adopt(first.proposal() + 5)
        assert (intervals.phases_every, intervals.collectives_every) == (2, 16 * COLLECTIVES_EVERY)
    recorded = [[step for step in range(1, 200) if of.records_phases(step)] for of in (first, other)]
    assert recorded[0] == recorded[1] == [1, 2, 3, *range(4, 200, 2)]


def test_the_largest_intervals_fit_into_the_number_that_ranks_agree_on() -> None:
    intervals = RecordingIntervals(0.0)
    for _ in range(100):
        intervals.account_phases(1.0, 1.0)
        intervals.account_collectives(1.0, 1.0)
        intervals.adopt(intervals.proposal() + MASK)
    assert (intervals.phases_every, intervals.collectives_every) == (64, 1280)
    assert intervals.proposal() + MASK < 2**53


@pytest.mark.parametrize("swing", [1.5, 4.0])
def test_step_times_that_swing_do_not_make_the_interval_swing(swing: float) -> None:
    """A cost of 1 ms of steps that take 100 ms, or ``swing`` times as long: 0.4 % pay for every fourth step."""
    intervals, changes = RecordingIntervals(0.01), 0
    for step in range(1, 1000):
        if step % intervals.phases_every == 0:
            intervals.account_phases(1.0, 100.0 * (swing if step // 20 % 2 else 1.0))
        before = intervals.phases_every
        intervals.adopt(intervals.proposal())
        changes += intervals.phases_every != before
    assert intervals.phases_every in (2, 4, 8) and changes <= 4
