"""The emulated link of a rank, against the arithmetic of its bytes."""

from __future__ import annotations

import pytest

from workbench.core.network import read
from workbench.engine.network.link import Link

BOTH = [0, 1]


def test_collectives_take_the_link_one_after_the_other_and_latency_takes_it_for_none():
    link = Link(read("8Mbit,10ms"))
    # two ranks: an all-reduce sends its bytes once, in two messages
    assert link.over_at(100.0, "all_reduce", BOTH, 1e6) == pytest.approx(100 + 1 + 0.02)
    assert link.over_at(100.5, "all_reduce", BOTH, 1e6) == pytest.approx(100 + 2 + 0.02), "it waits for the first"
    assert link.over_at(105.0, "all_gather", BOTH, 1e6) == pytest.approx(105 + 0.5 + 0.01), "half, in one message"
    assert link.over_at(106.0, "barrier", BOTH, 0) == pytest.approx(106 + 0.01)


def test_nothing_is_saved_up_while_the_link_is_idle():
    link = Link(read("8Mbit"))
    link.over_at(0.0, "all_reduce", BOTH, 1)
    assert link.over_at(1000.0, "all_reduce", BOTH, 2e6) == pytest.approx(1002)


def test_all_are_as_slow_as_the_slowest():
    link = Link(read("8Mbit,10ms,straggler=rank1:3x"))
    assert link.over_at(0.0, "all_reduce", BOTH, 1e6) == pytest.approx(3 * 1.02)
    assert link.over_at(10.0, "all_reduce", [0, 2], 1e6) == pytest.approx(11.02)


def test_many_messages_take_the_time_of_their_sum():
    link, over = Link(read("8Mbit")), 0.0
    for number in range(1000):
        over = link.over_at(0.0, "all_reduce", BOTH, 1000 + number)
    assert over == pytest.approx(sum(1000 + number for number in range(1000)) / 1e6)
