"""What is predicted of steps whose costs are known."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from workbench.core.config import ParallelPlan
from workbench.core.network import Network, read
from workbench.run.lab.step_cost import Sent, StepCost, crossover, read_cost

SLOW = read("8Mbit,10ms")  # a megabyte in a second


def cost(*sent: Sent) -> StepCost:
    return StepCost(ranks=2, compute_s=3.0, backward_s=1.0, sent=sent)


def test_what_is_sent_after_the_backward_pass_adds_its_time():
    whole = cost(Sent(kind="all_reduce", calls=1, bytes=1e6))
    assert whole.step_s(SLOW) == pytest.approx(3 + 1 + 2 * 0.01)
    assert whole.step_s(SLOW, 4) == pytest.approx(3 + 1.5 + 6 * 0.01)
    assert whole.step_s(SLOW, 1) == pytest.approx(3)
    rare = cost(Sent(kind="all_reduce", calls=1 / 8, bytes=1e6 / 8))
    assert rare.step_s(SLOW) == pytest.approx(3 + (1 + 2 * 0.01) / 8)


def test_what_is_gathered_grows_with_the_ranks():
    found = cost(Sent(kind="all_gather", calls=1, bytes=2e6))
    assert found.step_s(SLOW) == pytest.approx(3 + 1 + 0.01)
    assert found.step_s(SLOW, 4) == pytest.approx(3 + 4 * 0.75 + 3 * 0.01)


def test_parts_of_a_gradient_are_sent_while_the_backward_pass_goes_on():
    def of(megabytes: float, calls: int) -> float:
        sent = Sent(kind="all_reduce", calls=calls, bytes=megabytes * 1e6, beside_backward=True)
        return cost(sent).step_s(Network(bits_per_s=8e6)) - 3

    assert of(1.0, 1) == pytest.approx(1.0), "one bucket is ready at the end"
    assert of(1.0, 4) == pytest.approx(0.25), "the last of them is left"
    assert of(4.0, 4) == pytest.approx(3.25), "the link is never idle from the first on"
    assert of(0.0, 4) == 0


def test_a_straggler_slows_all_down():
    found = cost(Sent(kind="all_reduce", calls=1, bytes=1e6))
    assert found.step_s(read("8Mbit,10ms,straggler=rank1:2x")) == pytest.approx(3 + 2 * 1.02)


def test_the_crossover_is_where_both_need_as_long():
    whole = StepCost(ranks=2, compute_s=1.0, backward_s=0.0, sent=(Sent(kind="all_reduce", calls=1, bytes=1e6),))
    small = StepCost(ranks=2, compute_s=1.5, backward_s=0.0, sent=(Sent(kind="all_reduce", calls=1, bytes=1e5),))
    # 8 (1e6 - 1e5) bits take half a second at 14.4 Mbit/s
    assert crossover((small, 100), (whole, 100), 0.0, (1e5, 1e13)) == pytest.approx(14.4e6, rel=2e-3)
    assert crossover((whole, 100), (small, 1000), 0.0, (1e5, 1e13)) == math.inf
    assert crossover((small, 2000), (whole, 100), 0.0, (1e5, 1e13)) == 0
    free = StepCost(ranks=2, compute_s=1.0, backward_s=0.0, sent=())
    assert crossover((free, 100), (whole, 100), 0.0, (1e5, 1e13)) == math.inf


class Recorded:
    """A run whose log is known: 20 steps of 500 ms, of which rank 1 waits 100 ms and rank 0 150."""

    def __init__(self, plan: str, rows: list[tuple[int, str, int]]) -> None:
        self.plan = ParallelPlan.parse(plan)
        self._rows = rows

    def metrics(self) -> pd.DataFrame:
        return pd.DataFrame({"step": range(1, 21), "step_time_ms": [9000.0] * 3 + [500.0] * 17})

    def phases(self) -> pd.DataFrame:
        told = [("forward", 150.0, 150.0), ("backward", 200.0, 200.0), ("communication", 150.0, 100.0)]
        rows = [
            {"step": step, "rank": rank, "phase": phase, "duration_ms": times[rank]}
            for step in range(1, 21)
            for phase, *times in told
            for rank in range(2)
        ]
        return pd.DataFrame(rows)

    def collectives(self) -> pd.DataFrame:
        rows = [(step, rank, kind, size) for step, kind, size in self._rows for rank in range(2)]
        return pd.DataFrame(rows, columns=["step", "rank", "kind", "bytes"])


def test_costs_are_read_from_the_log():
    rows = [(step, "all_reduce", size) for step in (1, 10, 20) for size in (600, 400)]
    found = read_cost(Recorded("torch ddp2", [*rows, (10, "broadcast", 64), (20, "broadcast", 64)]))
    assert (found.ranks, found.compute_s, found.backward_s) == (2, 0.4, 0.2)
    assert found.sent == (
        Sent(kind="all_reduce", calls=2, bytes=1000, beside_backward=True),
        Sent(kind="broadcast", calls=1, bytes=64),
    )


def test_of_local_steps_the_exchanges_are_spread_over_the_steps():
    rows = [(12, "all_reduce", 4000), (20, "all_reduce", 4000)]
    found = read_cost(Recorded("torch ddp2:post-local-sgd:8:after=4", rows))
    assert found.sent == (Sent(kind="all_reduce", calls=2 / 16, bytes=500),)
    powersgd = read_cost(Recorded("torch ddp2:powersgd", [(10, "all_reduce", 4000)]))
    assert not powersgd.sent[0].beside_backward, "backward waits for it"
