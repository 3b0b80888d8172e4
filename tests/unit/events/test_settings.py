"""Which settings are in force: told at the begin, followed by what is set, gone back with a rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fake_run import fake_spec, make_fake_run, write_spec
from workbench.core.records import StepRecord
from workbench.events.settings import CurrentSettings
from workbench.run.api import Run
from workbench.rundir.directory import CONTROL_FILE
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store


def step(number: int, lr: float) -> StepRecord:
    return StepRecord(
        time=float(number), step=number, rank=0, loss=1.0, lr=lr, grad_sq=1.0, tokens=1, step_time_ms=1.0,
        data_wait_ms=0.0,
    )  # fmt: skip


def test_the_values_follow_what_happens(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec(ranks=1))
    (tmp_path / CONTROL_FILE).touch()
    run = Run(tmp_path)
    begun: dict[str, Any] = {"lr": 0.0, "clip": 1.0, "grad_every": "auto", "temperature": 1.0, "frozen": []}
    with RankLogWriter(tmp_path, 0) as log:
        log.event("settings", "in_force", begun)
        log.flush()
        assert run.settings() == begun
        log.append(step(1, 0.5))
        log.flush()
        assert run.settings() == begun, "a step of before says nothing about now"
        log.append(step(2_000_000_000_000, 0.5))  # of after
        log.event("control", "clip", 0.25, old_value=1.0)
        log.event("control", "temperature", 2.0, old_value=1.0)
        log.event("control", "freeze", ["a"], old_value=[])
        log.event("control", "pause", "paused", old_value="running")
        log.event("refused", "clip", {"value": 9, "reason": "no"})
        log.flush()
        after = begun | {"lr": 0.5, "clip": 0.25, "temperature": 2.0, "frozen": ["a"]}
        assert run.settings() == after
        log.event("settings", "in_force", begun, step=1)
        log.flush()
        assert run.settings() == begun | {"lr": 0.5}


def test_what_another_rank_says_is_not_counted_again(tmp_path: Path) -> None:
    store = Store(make_fake_run(tmp_path / "run", steps=20))
    store.refresh()
    found = CurrentSettings()
    found.take(store.table("events"))
    assert (found.values["clip"], found.values["lr"], found.values["interval"]) == (1.0, 0.0015, 20)
    found.take_lr(0.1, 0.0)
    assert found.values["lr"] == 0.0015, "what was set is newer than a step of long ago"
