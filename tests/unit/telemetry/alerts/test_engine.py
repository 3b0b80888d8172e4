"""Alerts on logs whose faults are known: when they begin and end, where, and that live and later are the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faulty_run import MIB, Faulty, alter
from workbench.core.records import Event, ValueRecord
from workbench.events.alerts import BEGINS, ENDS, RULES, Alert, active, alerts_of, table_of
from workbench.telemetry.alerts.engine import AlertEngine, built_in, find_alerts
from workbench.telemetry.alerts.steps import last_whole_step
from workbench.telemetry.store import Store


def told(alerts: list[Alert]) -> list[tuple[int, str, str]]:
    return [(alert.step, alert.name, alert.state) for alert in alerts]


def alerts(tmp_path: Path, change: Any, steps: int = 260) -> list[Alert]:
    run = Faulty(tmp_path / "run", change)
    run.train(1, steps)
    return find_alerts(run.path)


FAULTS: dict[str, tuple[Any, int, int]] = {
    "loss_spike": (alter("loss", range(120, 121), lambda value: 5.0), 120, 125),
    "loss_drift": (alter("loss", range(120, 200), lambda value: 2.6), 124, 0),
    "grad_norm_drift": (alter("grad_norm", range(120, 200), lambda value: 3.0), 124, 0),
    "dead_layer": (alter("reduced block.0", range(120, 130), lambda value: 0.0), 122, 132),
    "vanishing_gradient": (alter("reduced block.0", range(120, 130), lambda value: 1e-7), 124, 132),
    "exploding_logits": (alter("max_logit block.1", range(120, 130), lambda value: 80.0, rank=1), 122, 132),
    "update_ratio": (alter("ratio head", range(120, 130), lambda value: 0.5), 120, 132),
    "update_vanishes": (alter("ratio head", range(120, 130), lambda value: 1e-9), 122, 132),
    "rank_loss_differs": (alter("loss", range(120, 130), lambda value: 2.4, rank=1), 120, 0),
    "rank_gradient_differs": (alter("local block.1", range(120, 122), lambda value: 30.0, rank=1), 120, 131),
    "rank_layer_differs": (alter("local block.1", range(120, 122), lambda value: 30.0, rank=1), 120, 124),
    "loss_scale_collapse": (alter("loss_scale", range(120, 130), lambda value: 512.0), 120, 179),
    "data_wait": (alter("data_wait_ms", range(120, 160), lambda value: 50.0), 129, 0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_alert_with_a_begin_and_an_end(tmp_path: Path, name: str) -> None:
    change, begin, end = FAULTS[name]
    found = [alert for alert in alerts(tmp_path, change, 300) if alert.name == name]
    assert told(found)[0] == (begin, name, BEGINS)
    assert [alert.state for alert in found] == [BEGINS, ENDS] * (len(found) // 2), "each begin has one end"
    if end:
        assert told(found) == [(begin, name, BEGINS), (end, name, ENDS)] and found[1].since == begin


def test_memory_that_creeps_is_an_alert_and_that_which_was_taken_at_once_is_none(tmp_path: Path) -> None:
    def creep(step: int, rank: int, name: str, value: float) -> float:
        return value + 4 * MIB * step if name == "rss_bytes" and rank == 1 else value

    (found,) = alerts(tmp_path, creep)
    assert (found.name, found.rank, found.where) == ("memory_creep", 1, "resources") and 201 <= found.step <= 210

    jump = alter("rss_bytes", range(100, 400), lambda value: 3 * value)
    assert alerts(tmp_path / "b" if (tmp_path / "b").mkdir() is None else tmp_path, jump) == []


def test_a_healthy_run_has_no_alert(tmp_path: Path) -> None:
    assert alerts(tmp_path, lambda step, rank, name, value: value, 300) == []


def test_every_rule_has_words_and_every_fault_above_a_rule() -> None:
    names = [rule.name for rule in built_in()]
    assert sorted(names) == sorted(RULES) and len(set(names)) == len(names)
    assert set(FAULTS) | {"memory_creep", "nonfinite", "grad_norm_spike"} == set(names)


def both(first: Any, *others: Any) -> Any:
    def change(step: int, rank: int, name: str, value: float) -> float:
        for each in (first, *others):
            value = each(step, rank, name, value)
        return value

    return change


@pytest.mark.parametrize("seed", range(3))
def test_live_and_later_are_the_same(tmp_path: Path, seed: int) -> None:
    """Read in pieces of random length while it grows, and at once when it is over: the same alerts, to the last bit."""
    random = np.random.default_rng(seed)
    run = Faulty(tmp_path / "run", both(*(change for change, _, _ in FAULTS.values())))
    own = {"name": "high", "when": "loss > 1.2 * median(loss, 20)", "text": "", "after": 1}
    run.logs[0].event("control", "alert", own, step=0)
    engine, live, step = AlertEngine(Store(run.path)), [], 0
    while step < 260:
        more = int(random.integers(1, 40))
        run.train(step + 1, min(260, step + more))
        step = min(260, step + more)
        engine.store.refresh()
        live += engine.look(last_whole_step(engine.store))
    live += engine.look(last_whole_step(engine.store, over=True))
    later = find_alerts(run.path)
    assert live == later and {alert.name for alert in live} >= {"loss_spike", "vanishing_gradient", "high"}


def test_conditions_on_logged_values(tmp_path: Path) -> None:
    """Logged every third step by both ranks; a condition is asked at these steps only, and what never comes is told."""
    run = Faulty(tmp_path / "run", lambda step, rank, name, value: value)
    for name, when, after in (("high", "entropy > 2", 2), ("ranks", "apart > 1.4", 1), ("never", "entrop > 1", 1)):
        run.logs[0].event("control", "alert", {"name": name, "when": when, "text": "", "after": after}, step=0)
    for rank, log in enumerate(run.logs):
        for step in range(3, 31, 3):
            value = 4.0 if step >= 12 else 0.0
            log.append(ValueRecord(step=step, rank=rank, name="entropy", reduce="mean", value=value, count=1))
            log.append(ValueRecord(step=step, rank=rank, name="apart", reduce="none", value=1.0 + rank, count=1))
            log.append(ValueRecord(step=step, rank=rank, name="nobody asks", reduce="mean", value=value, count=1))
    run.train(1, 31)
    store = Store(run.path)
    store.refresh()
    missing: list[Any] = []
    engine = AlertEngine(store, missing=lambda *told: missing.append(told))
    assert told(engine.look(31)) == [(3, "ranks", BEGINS), (15, "high", BEGINS)]
    engine.tell_missing(50)
    assert missing == []
    engine.tell_missing()
    engine.tell_missing()
    assert missing == [("never", ["entrop"], 31)]


def test_the_origin_stands_first(tmp_path: Path) -> None:
    """Rank 1's batch goes wrong at step 120: its loss, then its gradient, then the mean and the reduced gradient."""
    wrong = range(120, 123)
    change = both(
        alter("reduced head", range(118, 130), lambda value: 0.0),
        alter("reduced embed", range(118, 130), lambda value: 0.0),
        alter("loss", wrong, lambda value: 9.0, rank=1),
        alter("local block.1", wrong, lambda value: 30.0, rank=1),
        alter("ratio head", range(120, 130), lambda value: 0.5),
    )
    found = [alert for alert in alerts(tmp_path, change) if alert.step == 120 and alert.state == BEGINS]
    assert [alert.name for alert in found] == [
        "rank_loss_differs", "loss_spike", "rank_gradient_differs", "rank_layer_differs", "dead_layer", "update_ratio",
    ]  # fmt: skip
    assert [alert.order for alert in found] == list(range(6))
    assert (found[0].rank, found[0].where) == (1, "loss")
    dead = next(alert for alert in found if alert.name == "dead_layer")
    assert dead.layers == ("head", "embed") and dead.count == 2, "backward begins at the end of the model"


def test_alerts_do_not_flood(tmp_path: Path) -> None:
    """A value that crosses its limit every other step is one alert that goes on, not a hundred."""
    change = both(*(alter("loss", range(at, at + 1), lambda value: 5.0) for at in range(120, 240, 2)))
    found = [alert for alert in alerts(tmp_path, change) if alert.name == "loss_spike"]
    assert len(found) <= 4


def test_a_value_that_is_not_finite_is_an_alert_where_it_began(tmp_path: Path) -> None:
    run = Faulty(tmp_path / "run")
    run.train(1, 20)
    run.logs[1].event("nonfinite", "loss", {"rank": 1, "layer": "block.1", "where": "forward"}, step=20)
    run.logs[1].flush()
    (found,) = find_alerts(run.path)
    assert (found.name, found.rank, found.layers, found.where, found.event) == (
        "nonfinite", 1, ("block.1",), "forward", "nonfinite loss",
    )  # fmt: skip


def test_own_alerts_hold_from_the_next_step_on_and_are_replaced(tmp_path: Path) -> None:
    run = Faulty(tmp_path / "run", alter("loss", range(10, 30), lambda value: 9.0))
    run.train(1, 14)
    run.logs[0].event("control", "alert", {"name": "high", "when": "loss > 8", "text": "too high", "after": 2}, step=14)
    run.logs[0].event("control", "alert", {"name": "bad", "when": "loss >", "text": "", "after": 1}, step=14)
    run.logs[0].event("control", "alert", {"name": "mine", "when": "", "is_function": True}, step=14)
    run.train(15, 40)
    found = [alert for alert in find_alerts(run.path, {"mine": lambda values: values["step"] == 33}) if alert.is_own]
    assert told(found) == [(16, "high", BEGINS), (30, "high", ENDS), (33, "mine", BEGINS), (34, "mine", ENDS)]
    assert found[0].sentence() == "high: too high"


def test_a_function_that_raises_is_told_and_asked_no_more(tmp_path: Path) -> None:
    run = Faulty(tmp_path / "run")
    run.logs[0].event("control", "alert", {"name": "mine", "when": "", "is_function": True}, step=0)
    run.train(1, 9)
    asked, failures = [], []

    def condition(values: Any) -> bool:
        asked.append(values["step"])
        raise KeyError("x")

    store = Store(run.path)
    store.refresh()
    engine = AlertEngine(store, {"mine": condition}, lambda name, error: failures.append((name, repr(error))))
    assert engine.look(9) == [] and asked == [1.0] and failures == [("mine", "KeyError('x')")]


def test_an_alert_is_read_back_as_it_was_logged(tmp_path: Path) -> None:
    run = Faulty(tmp_path / "run", FAULTS["dead_layer"][0])
    run.train(1, 140)
    found = find_alerts(run.path)
    for alert in found:
        run.logs[0].append(alert.to_event())
    run.logs[0].append(Event(time=0.0, step=1, rank=0, kind="alert", name="odd", value=json.dumps([1, {"x": "y"}])))
    run.logs[0].flush()
    store = Store(run.path)
    store.refresh()
    read = alerts_of(store.table("events"))
    begun = next(alert for alert in read if alert.name == "dead_layer")
    assert begun == next(alert for alert in found if alert.name == "dead_layer")
    assert active(read)[-1].name == "odd" and active(read)[0].name == "odd", "the dead layer is alive again"
    table = table_of(read)
    row = table[table["name"] == "dead_layer"].iloc[0]
    assert (row["step"], row["ended"], row["layer"]) == (122, 132, "block.0")
    assert "dead layer: 0, block.0" in row["text"] and "learns nothing" in row["explanation"]


def test_ranks_evaluate_rules_without_pandas(tmp_path: Path) -> None:
    """Importing it takes a second of rank 0's time."""
    run = Faulty(tmp_path / "run", FAULTS["update_ratio"][0])
    run.train(1, 130)
    script = (
        "import sys; from workbench.telemetry.alerts.engine import find_alerts; "
        f"print([alert.name for alert in find_alerts({str(run.path)!r})], 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['update_ratio'] False"
