"""The governor keeps its budget over simulated steps of any length, and wastes little of it."""

from __future__ import annotations

import pytest

from workbench.engine.watch.host.governor import FULL, MIN_SHARE, NORMS, NOTHING, Governor


def simulate(
    governor: Governor,
    steps: int,
    step_ms: float,
    full_ms: float,
    *,
    norms_ms: float = 0.0,
    first_ms: float | None = None,
) -> list[int]:
    """What is watched at each step; a choice is known one step before it is made good, as between ranks."""
    chosen, watched = FULL, []
    for _ in range(steps):
        following = governor.choose()
        cost = {NOTHING: 0.0, FULL: full_ms}.get(chosen, norms_ms)
        if not watched and first_ms is not None:
            cost = first_ms
        governor.account(chosen, cost, step_ms + cost)
        watched.append(chosen)
        chosen = following
    return watched


@pytest.mark.parametrize(
    ("step_ms", "full_ms", "norms_ms"), [(5, 20, 0.2), (50, 20, 0.2), (500, 20, 0.2), (50, 400, 1)]
)
def test_watching_costs_the_budget_and_no_more(step_ms, full_ms, norms_ms):
    governor = Governor(budget=0.01, norms=True)
    steps = 40 * max(1, round(full_ms / (0.01 * step_ms)))
    watched = simulate(governor, steps, step_ms, full_ms, norms_ms=norms_ms)
    assert governor.spent_ms <= 0.01 * governor.passed_ms + full_ms + norms_ms, "in debt for one of each at most"
    assert governor.cost >= 0.0065, "what may be spent is spent, for what is seen"
    found = watched.count(FULL)
    assert found == pytest.approx(steps * 0.007 * step_ms / full_ms, rel=0.15)
    assert governor.interval == pytest.approx(steps / found, rel=0.2)
    assert watched.count(NORMS) == pytest.approx(min(steps - found, steps * 0.003 * step_ms / norms_ms), rel=0.15)


def test_nothing_is_watched_before_an_expensive_first_set_is_paid_back():
    governor = Governor(budget=0.01, norms=False)
    watched = simulate(governor, 20_000, 5.0, 5.0, first_ms=100.0)
    second = watched.index(FULL, 1)
    assert second == pytest.approx(100 / 0.05, rel=0.1)
    assert governor.cost <= 0.0105


def test_a_set_that_the_budget_pays_for_is_watched_at_every_step():
    governor = Governor(budget=0.05, norms=True)
    watched = simulate(governor, 200, 100.0, 1.0, norms_ms=0.5)
    assert watched.count(FULL) >= 190


def test_the_interval_follows_the_step_time():
    governor = Governor(budget=0.01, norms=False)
    simulate(governor, 2000, 50.0, 10.0)
    slow = governor.interval
    simulate(governor, 4000, 5.0, 10.0)
    assert slow == pytest.approx(20, abs=1)
    assert governor.interval == pytest.approx(200, rel=0.05)


def test_a_long_pause_is_not_followed_by_a_burst():
    governor = Governor(budget=0.01, norms=False)
    simulate(governor, 100, 10.0, 5.0)
    governor.account(governor.choose(), 0.0, 1e6)
    watched = simulate(governor, 100, 10.0, 5.0)
    assert watched[1:].count(FULL) <= 5


def with_a_rest(governor: Governor, steps: int, other_ms: float, every: int) -> tuple[list[int], float]:
    """Steps of 10 ms, a full set of 1 ms, and all else that watches: ``other_ms`` in every ``every``-th step. What was
    watched, and the share of the time that all of it cost."""
    chosen, watched, spent, passed = FULL, [], 0.0, 0.0
    for number in range(steps):
        following = governor.choose()
        cost = 1.0 if chosen == FULL else 0.0
        rest = other_ms if number % every == 0 else 0.0
        governor.account(chosen, cost, 10.0 + cost + rest, rest)
        spent, passed = spent + cost + rest, passed + 10.0 + cost + rest
        watched.append(chosen)
        chosen = following
    return watched, spent / passed


@pytest.mark.parametrize("every", [1, 25])
def test_what_else_watching_costs_is_paid_first_and_the_whole_keeps_to_the_budget(every):
    governor = Governor(budget=0.01, norms=False)
    watched, share = with_a_rest(governor, 20_000, 0.05 * every, every)
    assert share == pytest.approx(0.01, rel=0.03) and governor.cost == pytest.approx(share)
    assert watched.count(FULL) == pytest.approx(20_000 * 0.05, rel=0.05), "0.05 ms of the 0.1 ms a step are left"
    assert governor.interval == pytest.approx(20, abs=1)


def test_gradients_are_watched_even_where_all_else_costs_more_than_the_budget():
    governor = Governor(budget=0.01, norms=False)
    watched, _ = with_a_rest(governor, 20_000, 0.3, 1)
    assert watched.count(FULL) == pytest.approx(20_000 * MIN_SHARE * 0.1, rel=0.1)
    governor.account(NOTHING, 0.0, 10.0)
    watched, _ = with_a_rest(governor, 2_000, 0.0, 1)
    assert watched[1000:].count(FULL) == pytest.approx(100, rel=0.1), "what was owed is not remembered for ever"
