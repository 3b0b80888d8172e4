"""Every case under each of its plans: losses and gradient norms are those of one process, or the plan is refused."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from tests.engine.rank_pool import RankPool
from tests.training.cells.harness.case import load_cases
from tests.training.cells.harness.trained import compiler_of, train_case, train_plainly
from workbench.core.records import EventKind
from workbench.events.decode import of_kind
from workbench.run.reader import RunReader

#: those that need the compiler come last: ranks of the others are forked from a smaller process
CASES = dict(sorted(load_cases().items(), key=lambda item: compiler_of(item[1])))
EACH = [pytest.param(name, plan, id=f"{name}-{plan}") for name, case in CASES.items() for plan in case.plans]


@pytest.fixture(scope="module")
def plain(pool: RankPool) -> Any:
    """``plain(name)``: losses and norms of a case in one process, which later trains the case as rank 0."""

    @functools.cache
    def of(name: str) -> dict[str, Any]:
        return train_plainly(pool, CASES[name], kept_for=name)

    return of


def _said(run: RunReader) -> str:
    events = run.store.table("events")
    kinds = set(EventKind) - {EventKind.STATE, EventKind.CONTROL}
    return "\n".join(f"{event.name} {event.value}" for kind in kinds for event in of_kind(events, kind))


def _validations(run: RunReader) -> dict[int, dict[str, Any]]:
    """Step -> name -> value."""
    found: dict[int, dict[str, Any]] = {}
    for event in of_kind(run.store.table("events"), EventKind.VALIDATION):
        found.setdefault(event.step, {})[event.name] = event.value
    return found


@pytest.mark.parametrize(("name", "plan"), EACH)
def test_it_trains_as_one_process_or_is_refused(name: str, plan: str, pool: RankPool, plain: Any) -> None:
    case = CASES[name]
    right = plain(name) if set(case.plans) - case.refused.keys() else {}  # before a plan has been trained there
    run, failure = train_case(pool, case, plan, kept_for=name)
    if plan in case.refused:
        assert case.refused[plan] in failure
        assert run is None or run.last_step == case.refused_after
        return
    assert not failure
    assert run is not None
    metrics = run.metrics()
    expected = case.says.get(plan, case.says.get("", ""))
    assert expected in _said(run)
    if plan in case.differs:
        assert expected
        return
    np.testing.assert_allclose(metrics["loss"], right["losses"], rtol=case.tolerance, atol=1e-7)
    if right["norms"]:
        np.testing.assert_allclose(metrics["grad_norm"], right["norms"], rtol=10 * case.tolerance, atol=1e-6)
    if right["validations"]:
        found = _validations(run)
        assert list(found) == sorted(found)
        assert len(found) == len(right["validations"])
        for values, expected in zip(found.values(), right["validations"], strict=True):
            assert values.keys() == expected.keys()
            for key, value in expected.items():
                np.testing.assert_allclose(values[key], value, rtol=case.tolerance, atol=1e-7, err_msg=key)
