"""Values as JSON and back, compared with themselves; schedulers' states are what this is for."""

import collections
import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.loop.learning_rate import LearningRate
from workbench.engine.state.plain_state import NotPlainError, from_plain, to_plain, to_plain_where_possible

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = st.integers() | st.text() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner), max_leaves=10
)


def same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex() or (math.isnan(a) and math.isnan(b))
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b


@settings(max_examples=100, derandomize=True, deadline=None)
@given(VALUES)
def test_there_and_back(value: object) -> None:
    assert same(from_plain(json.loads(json.dumps(to_plain(value), allow_nan=False))), value)


def test_containers_arrays_and_generators() -> None:
    for value in (collections.Counter({30: 1}), {1, 2}, frozenset("a"), collections.deque([1]), random.getstate()):
        found = from_plain(json.loads(json.dumps(to_plain(value))))
        assert found == value and type(found) is type(value)
    state = np.random.get_state()
    found = from_plain(json.loads(json.dumps(to_plain(state))))
    assert found[0] == state[0] and found[2:] == state[2:]
    np.testing.assert_array_equal(found[1], state[1])
    assert torch.equal(from_plain(to_plain(torch.tensor([0.1, -0.0]))), torch.tensor([0.1, -0.0]))


def test_what_has_no_form_is_named() -> None:
    with pytest.raises(NotPlainError, match="function"):
        to_plain(lambda: 0)
    assert to_plain_where_possible({"a": 1, "b": [print]}) == ({"a": 1}, ["b"])


def scheduler_of(kind: str, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    schedulers = torch.optim.lr_scheduler
    return {
        "lambda": lambda: schedulers.LambdaLR(optimizer, lambda step: 0.9**step),
        "milestones": lambda: schedulers.MultiStepLR(optimizer, [3, 6, 6]),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, 12),
        "one cycle": lambda: schedulers.OneCycleLR(optimizer, max_lr=0.5, total_steps=20),
        "sequential": lambda: schedulers.SequentialLR(
            optimizer, [schedulers.ConstantLR(optimizer, 0.5, 3), schedulers.ExponentialLR(optimizer, 0.9)], [4]
        ),
    }[kind]()


@pytest.mark.parametrize("kind", ["lambda", "milestones", "cosine", "one cycle", "sequential"])
def test_a_schedule_goes_on_as_it_would_have(kind: str) -> None:
    def run(steps: int, state: tuple | None = None) -> tuple[list[float], tuple]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler = scheduler_of(kind, optimizer)
        rate = LearningRate(optimizer, scheduler)
        if state is not None:
            optimizer.param_groups[0].update(from_plain(state[0]))
            scheduler.load_state_dict({**scheduler.state_dict(), **from_plain(state[1])})
            rate.restore(state[2])
        rates = []
        for _ in range(steps):
            rates.append(rate.now)
            optimizer.step()
            rate.advance()
        group = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
        saved = (to_plain(group), to_plain_where_possible(scheduler.state_dict())[0], rate.state())
        return rates, tuple(json.loads(json.dumps(part)) for part in saved)

    whole, _ = run(12)
    first, state = run(5)
    assert first + run(7, state)[0] == whole
    assert len(set(whole)) > 1


@pytest.mark.parametrize("kind", ["lambda", "cosine", "one cycle"])
def test_a_rate_turned_by_hand_leaves_the_schedule_alone(kind: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    rate = LearningRate(optimizer, scheduler_of(kind, optimizer))
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    plain, found, expected = scheduler_of(kind, other), [], []
    turns = {2: 0.7, 4: "x0.5", 6: "schedule", 7: "x2.0", 8: "x2.0"}
    for step in range(10):
        if step in turns:
            rate.set(turns[step])
        scheduled = other.param_groups[0]["lr"]
        expected.append(
            {2: 0.7, 3: 0.7, 4: 0.35, 5: 0.35, 7: 2 * scheduled}.get(step, scheduled * (4 if step > 7 else 1))
        )
        found.append(rate.now)
        optimizer.step(), other.step()
        rate.advance(), plain.step()
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_rate_set_by_hand_keeps_the_ratios_of_groups() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.001, 0.1)]
    optimizer = torch.optim.SGD(groups)
    rate = LearningRate(optimizer, None)
    rate.set(0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 1.0])
    rate.set("schedule")
    assert [group["lr"] for group in optimizer.param_groups] == [0.001, 0.1]


def test_another_rate_at_the_start_goes_on_at_the_same_place_of_the_schedule() -> None:
    def begun(lr: float) -> tuple[torch.optim.Optimizer, LearningRate]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        return optimizer, LearningRate(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step))

    saved, rate = begun(0.1)
    for _ in range(3):
        saved.step()
        rate.advance()
    optimizer, slower = begun(0.01)
    optimizer.param_groups[0].update({key: value for key, value in saved.param_groups[0].items() if key != "params"})
    slower._scheduler.load_state_dict(rate._scheduler.state_dict())
    slower.restore(rate.state())
    rates = []
    for _ in range(3):
        rates.append(slower.now)
        optimizer.step()
        slower.advance()
    assert rates == pytest.approx([0.01 * 0.9**step for step in (3, 4, 5)])
