"""Alerts while a run trains: found on rank 0, logged, told to a command or a function that may fail or hang."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_run import Faulty, alter
from tests.waiting import until
from workbench.core.records import ValueRecord
from workbench.core.rules.own_alerts import OwnAlerts
from workbench.engine.watch.host import alerts, notify
from workbench.engine.watch.host.alerts import AlertWatch
from workbench.engine.watch.host.notify import Notifier, target_of
from workbench.engine.watch.host.sampler import Progress
from workbench.errors import ConfigError
from workbench.events.alerts import alerts_of
from workbench.telemetry.alerts.engine import find_alerts
from workbench.telemetry.store import Store

DEAD = alter("reduced block.0", range(20, 30), lambda value: 0.0)


def logged(run: Path) -> list[Any]:
    store = Store(run)
    store.refresh()
    return alerts_of(store.table("events"))


def warnings(run: Path) -> list[str]:
    store = Store(run)
    store.refresh()
    events = store.table("events")
    return [str(events["value"][row]) for row in range(events["step"].size) if events["kind"][row] == "warning"]


def watching(run: Faulty, monkeypatch: pytest.MonkeyPatch, own: OwnAlerts, target: Any = None) -> AlertWatch:
    monkeypatch.setattr(alerts, "EVERY_S", 0.02)
    monkeypatch.setattr(alerts, "SHARE", 1.0)
    watch = AlertWatch(run.path, "faulty", run.logs[0], Progress())
    watch.begin(own, {"--notify": target})
    return watch


def test_what_is_logged_while_it_trains_is_what_is_found_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the run included, which is looked at when nothing more can come."""
    run, own = Faulty(tmp_path / "run", DEAD), OwnAlerts()
    own.alert("late", "step > 55", text="nearly over")
    told: list[dict[str, Any]] = []
    watch = watching(run, monkeypatch, own, told.append)
    run.train(1, 40)
    until(lambda: told)
    run.train(41, 60)
    run.logs[1].event("state", "finished", step=60)
    run.logs[1].flush()
    watch.close()
    run.logs[0].flush()
    live = logged(run.path)
    assert live == find_alerts(run.path) and [alert.name for alert in live] == ["dead_layer", "dead_layer", "late"]
    assert [(message["alert"], message["step"], message["run"]) for message in told] == [
        ("dead_layer", 22, "faulty"), ("late", 56, "faulty"),
    ]  # fmt: skip
    assert told[0]["layers"] == ["block.0"] and "learns nothing" in told[0]["explanation"] and json.dumps(told)
    assert warnings(run.path) == []


def test_after_a_rollback_alerts_are_of_the_steps_that_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = {"number": 0}

    def once(step: int, rank: int, name: str, value: float) -> float:
        return 0.0 if name == "reduced block.0" and step in range(20, 30) and not passes["number"] else value

    run = Faulty(tmp_path / "run", once)
    watch = watching(run, monkeypatch, OwnAlerts())
    run.train(1, 40)
    until(lambda: run.logs[0].flush() or logged(run.path))
    for log in run.logs:
        log.event("checkpoint", "restored", {"path": "x", "rows": log.taken()}, step=10)
    passes["number"] = 1
    run.train(11, 60)
    run.logs[1].event("state", "finished", step=60)
    run.logs[1].flush()
    watch.close()
    assert find_alerts(run.path) == []
    assert {alert.step for alert in logged(run.path)} <= {22, 32}, "of the steps that were taken back"


def test_a_command_and_the_function_of_the_cell_are_both_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = Faulty(tmp_path / "run", DEAD), tmp_path / "told"
    told: list[str] = []
    monkeypatch.setattr(alerts, "EVERY_S", 0.02)
    watch = AlertWatch(run.path, "faulty", run.logs[0], Progress())

    def on_alert(alert: dict[str, Any]) -> None:
        told.append(alert["alert"])
        alert["nothing"]

    watch.begin(OwnAlerts(), {"--notify": f"cat >> {out}", "on_alert": on_alert})
    run.train(1, 40)
    run.logs[1].event("state", "finished", step=40)
    run.logs[1].flush()
    watch.close()
    run.logs[0].flush()
    assert told == ["dead_layer"] and json.loads(out.read_text())["alert"] == "dead_layer"
    assert warnings(run.path) == [
        json.dumps("on_alert failed: KeyError: 'nothing'. It is told once; training continues")
    ]


def test_a_name_that_nothing_logs_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, own = Faulty(tmp_path / "run", DEAD), OwnAlerts()
    own.alert("typo", "entrop > 1")
    watch = watching(run, monkeypatch, own)
    run.logs[0].append(ValueRecord(step=2, rank=0, name="entropy", reduce="mean", value=1.0, count=1))
    run.train(1, 60)
    until(lambda: run.logs[0].flush() or any("did you mean 'entropy'" in text for text in warnings(run.path)))
    watch.close(wait=False)
    assert len(warnings(run.path)) == 1


def test_a_command_gets_each_alert_as_json_and_its_failure_is_told_once(tmp_path: Path) -> None:
    out, failures = tmp_path / "told", []
    command = f"cat >> {out}; echo >> {out}"
    notifier = Notifier(command, failures.append)
    notifier.send({"alert": "a"})
    notifier.send({"alert": "b"})
    notifier.close()
    assert [json.loads(line)["alert"] for line in out.read_text().splitlines()] == ["a", "b"] and failures == []

    failing = Notifier("echo no such host >&2; exit 3", failures.append)
    failing.send({})
    failing.send({})
    failing.close()
    assert failures == ["it ended with 3: no such host"]


def test_what_hangs_or_raises_is_left_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "LIMIT_S", 0.2)
    failures: list[str] = []
    slow = Notifier("sleep 30", failures.append)
    slow.send({})
    until(lambda: failures)
    assert failures == ["it was ended after 0.2 s"]

    never, failures = threading.Event(), []
    hanging = Notifier(lambda message: never.wait(), failures.append)
    hanging.send({})
    until(lambda: failures)
    assert failures == ["it has not returned after 0.2 s and is called no more"]
    for _ in range(200):
        hanging.send({})  # never waits
    hanging.close()
    never.set()

    monkeypatch.undo()
    failures = []
    raising = Notifier(lambda message: 1 / 0, failures.append)
    raising.send({})
    raising.send({})
    raising.close()
    assert failures == ["ZeroDivisionError: division by zero"]


def test_a_function_is_named_by_its_module(tmp_path: Path) -> None:
    assert target_of("json:dumps") is json.dumps
    assert target_of("./notify.sh --to me") == "./notify.sh --to me" and target_of("") == ""
    for wrong in ("json:nothing", "no_such_module:f", "json:__name__"):
        with pytest.raises(ConfigError, match="--notify"):
            target_of(wrong)
